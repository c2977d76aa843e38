#!/bin/sh
# Random secrets for compose.yaml, in docker/secrets, which no image and no commit holds. Prints the dashboard's password.
set -eu
umask 077
folder="$(dirname "$0")/secrets"
mkdir "$folder" # fails where there are some already: new ones would not open the old database
password="$(openssl rand -hex 24)"
login="$(openssl rand -hex 12)"
printf '%s' "$password" >"$folder/postgres_password"
printf 'postgresql+psycopg://evomerge:%s@postgres/evomerge' "$password" >"$folder/storage_url"
openssl rand -hex 32 | tr -d '\n' >"$folder/ray_token"
printf 'evomerge:%s\n' "$(openssl passwd -apr1 "$login")" >"$folder/dashboard_logins"
chmod 0644 "$folder"/* # compose mounts them as they are, and containers read them as other users; the folder stays closed
echo "dashboard: user evomerge, password $login"
