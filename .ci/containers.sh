# Runs an image's container with only util-linux and ip. Sourced by image-check.
# `buildah run` will not do: its chroot isolation has no read-only root, and 1.28 panics if the root was made read-only.
# Neither will crun: Debian 12's rejects hosts with both versions of cgroups.

# child PID: prints the process that unshare forked, or nothing after its exit.
child() { { tr -d ' ' <"/proc/$1/task/$1/children"; } 2>/dev/null || true; }

# config IMAGE KEY: prints values of the image's configuration, each terminated by a zero byte.
config() { buildah inspect --type image "$1" | python3 -c "
import json, sys
value = json.load(sys.stdin)['Docker']['config']
for key in sys.argv[1].split('.'):
    value = value[key]
for each in value if isinstance(value, list) else [value]:
    sys.stdout.write(f'{each}\0')" "$2"; }

# image_process IMAGE: sets `root` to a new container's files, `entrypoint` to its command, and `process` to the prefix
# that runs a command in it as the image says: as its user without capabilities, with its environment and folder.
image_process() {
    local container user folder
    local -a environment
    container=$(buildah from --pull-never "$1")
    root=$(buildah mount "$container")
    IFS= read -rd '' user < <(config "$1" User)
    IFS= read -rd '' folder < <(config "$1" WorkingDir)
    mapfile -d '' environment < <(config "$1" Env)
    mapfile -d '' entrypoint < <(config "$1" Entrypoint)
    [[ $user =~ ^([1-9][0-9]*):([1-9][0-9]*)$ ]] || fail "user is $user, expected two numbers, not 0"
    # HOME as Docker sets it if the image has no such user.
    process=(setpriv "--reuid=${BASH_REMATCH[1]}" "--regid=${BASH_REMATCH[2]}" --clear-groups
        --inh-caps=-all --bounding-set=-all --no-new-privs
        env --ignore-environment "--chdir=$folder" HOME=/ "${environment[@]}")
}

# The prefix that enters the next containers' network: their own, with only the loopback device.
network=(unshare --net --)

# contain ROOT COMMAND...: like `docker run --read-only --cap-drop ALL`, but stricter: without shared memory. The command
# is process 1. The calling process becomes unshare, which exits with the command's code.
contain() {
    # shellcheck disable=SC2016
    exec "${network[@]}" unshare --mount --pid --ipc --uts --fork -- bash -euc '
        root=$1
        shift
        mount --bind "$root" "$root"
        mount -o remount,bind,ro "$root"
        mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
        mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
        mount -t tmpfs -o nosuid,noexec,mode=755 tmpfs "$root/dev"
        for device in null zero full random urandom; do
            touch "$root/dev/$device"
            mount --bind "/dev/$device" "$root/dev/$device"
        done
        mount -o remount,ro "$root/dev"
        ip link set lo up
        exec chroot "$root" "$@"' contain "$@"
}
