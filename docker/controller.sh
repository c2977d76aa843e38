#!/bin/sh
# The controller in a container of its own: this container joins the Ray cluster as a node without CPUs, where no worker
# is placed, and then becomes `evomerge`, so that a signal to the container is a signal to the controller, and the
# container's exit code is the controller's.
#
#   RAY_HEAD=HOST:PORT controller.sh run SPEC --storage ...
set -eu

# The first process of a container ignores signals that it has no answer to, and a shell answers when what it waits for
# has ended, unless that is `wait`. 3 as of `evomerge run`: a supervisor starts it again.
trap 'kill $! 2>/dev/null || true; exit 3' TERM INT HUP

join() {
    ray start --address="$RAY_HEAD" --num-cpus=0 --num-gpus=0 --disable-usage-stats >/tmp/ray-start.log 2>&1 &
    wait $!
}

tries=0
until join; do
    tries=$((tries + 1))
    if [ "$tries" -ge 30 ]; then
        cat /tmp/ray-start.log >&2
        echo "no Ray cluster at $RAY_HEAD answered for five minutes; run the same command again to go on" >&2
        exit 3
    fi
    sleep 10 &
    wait $!
done
trap - TERM INT HUP
exec evomerge "$@" --ray "$RAY_HEAD"
