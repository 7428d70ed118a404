#!/bin/sh
# Run a command as the container does, without a container: everything but FOLDER is read only, no capability is left,
# and there is no network but loopback. For the tests; as root, in namespaces of its own:
#   unshare --mount --net sh walls.sh FOLDER COMMAND...
set -eu
folder=$1
shift
mount --make-rprivate /
mount --bind "$folder" "$folder"
awk '{print $5}' /proc/self/mountinfo | sort -r | while read -r place; do
    case $place in
    "$folder" | /proc* | /dev* | /sys*) ;;
    *) mount -o remount,bind,ro "$place" ;;
    esac
done
exec setpriv --no-new-privs --bounding-set -all --inh-caps -all "$@"
