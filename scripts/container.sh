#!/bin/sh
# Begins each container, with the command to run: finds the folder to keep everything in, and ends being root.
set -eu

if [ -z "${ISENGARD_DATA_DIR:-}" ]; then
    ISENGARD_DATA_DIR=/data
    for volume in /runpod-volume /workspace; do  # a pod keeps what is on its volume, and nothing else
        if mountpoint -q "$volume"; then ISENGARD_DATA_DIR=$volume/isengard; fi
    done
    export ISENGARD_DATA_DIR
fi
if [ "$(id -u)" != 0 ]; then
    exec "$@"
fi

mkdir -p "$ISENGARD_DATA_DIR"
# A new volume, or folder of the host, belongs to root. One that belongs to somebody else stays as it is.
if [ "$(stat -c %u "$ISENGARD_DATA_DIR")" = 0 ]; then
    chown -R 1000:1000 "$ISENGARD_DATA_DIR" ||
        echo "$ISENGARD_DATA_DIR stays root's, as its volume allows no change: user 1000 has to be let in there" >&2
fi
# Where commands look that are started beside this one, with docker exec: they get no variable from here.
ln -sfn "$ISENGARD_DATA_DIR" /app/data
exec setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs "$@"
