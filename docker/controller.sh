#!/bin/sh
# The controller in a container of its own: this container joins the Ray cluster as a node without CPUs, where no worker
# is placed, and then becomes `evomerge`, so that a signal to the container is a signal to the controller, and the
# container's exit code is the controller's.
#
#   RAY_HEAD=HOST:PORT controller.sh run SPEC --storage ...
set -eu

tries=0
until ray start --address="$RAY_HEAD" --num-cpus=0 --num-gpus=0 --disable-usage-stats >/tmp/ray-start.log 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -ge 30 ]; then
        cat /tmp/ray-start.log >&2
        echo "no Ray cluster at $RAY_HEAD answered for five minutes; run the same command again to go on" >&2
        exit 3 # as of `evomerge run`: a supervisor starts it again
    fi
    sleep 10
done
exec evomerge "$@" --ray auto
