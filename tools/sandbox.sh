#!/usr/bin/env bash
# sandbox.sh CMD [ARG...] - run CMD on a throw-away host of its own.
#
# The host is a network, mount, uts, pid and ipc namespace with its own virtlogd, libvirtd, ovsdb-server
# and ovs-vswitchd; there is no bridge yet, and no way to the outside.  The checkout and /tmp are those of
# the machine.  Everything else the daemons write lives in memory, and everything that runs in it ends with
# it, however it ends; sandboxes can run side by side.  The exit status is that of CMD; 125 means that the
# host did not come up.  Needs root and the packages of tools/apt/run.txt.
#
#   KILONOVA_SANDBOX          is 1 for CMD
#   KILONOVA_SANDBOX_BARE     1: without daemons, for what makes hosts of its own on this one
#   KILONOVA_SANDBOX_LOGS     directory that gets the daemons' logs when CMD is done
#   KILONOVA_CACHE            where what libvirt found out about QEMU is kept between sandboxes
#                             (default: kilonova in the user's cache directory)
set -euo pipefail

CACHE=${KILONOVA_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/kilonova}/qemu-capabilities
CAPABILITIES=/var/cache/libvirt/qemu/capabilities
NAME=kilonova-sandbox
HERE=$(dirname "$(readlink -f "$0")")
PRIVATE=(/etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt
         /etc/openvswitch /var/lib/openvswitch /var/log/openvswitch /var/lib/kilonova)

fail() {
    echo "sandbox: $*" >&2
    tail -qn 5 "/run/$NAME/start.log" /var/log/libvirt/*.log /var/log/openvswitch/*.log >&2 2>/dev/null || true
    exit 125
}

outside() {
    (($#)) || { sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2; }
    [[ $EUID == 0 ]] || { echo "sandbox: a host of one's own needs root" >&2; exit 125; }
    local program
    for program in unshare setpriv ip virtlogd libvirtd virsh ovsdb-tool ovsdb-server ovs-vswitchd; do
        command -v "$program" >/dev/null && continue
        echo "sandbox: $program is not installed: run tools/install-packages.sh tools/apt/run.txt" >&2
        exit 125
    done
    # In the foreground, so that CMD keeps its terminal, its standard input and ^C.  When this shell is
    # killed by any signal, unshare goes with it, and the host with unshare.
    local status=0
    setpriv --pdeathsig KILL unshare --net --mount --uts --ipc --pid --fork --mount-proc --kill-child \
        "$0" --inside "$@" || status=$?
    exit "$status"
}

private_files() {
    local directory
    umount --recursive --lazy /run/netns 2>/dev/null || true # or we would hold other people's namespaces
    mount -t tmpfs -o mode=755 "$NAME" /run
    mount -t sysfs sysfs /sys # the one we came with shows the links of the machine
    mkdir -m 1777 /run/lock
    mkdir -p /run/libvirt /run/openvswitch
    for directory in "${PRIVATE[@]}"; do
        mkdir -p "$directory" "/run/$NAME$directory" # an empty directory is all that we may leave behind
        mount --bind "/run/$NAME$directory" "$directory"
    done
    mkdir -p "/run/$NAME/hugepages" # guests' large pages; those themselves are the machine's
    mount -t hugetlbfs hugetlbfs "/run/$NAME/hugepages" || rmdir "/run/$NAME/hugepages"
    printf '127.0.0.1 localhost %s\n::1 localhost\n' "$NAME" >"/run/$NAME/hosts"
    mount --bind "/run/$NAME/hosts" /etc/hosts
    hostname "$NAME"
    ip link set lo up
}

configure_libvirt() {
    cat >/etc/libvirt/libvirtd.conf <<CONF
auth_unix_rw = "none"
unix_sock_group = "root"
host_uuid = "$(cat /proc/sys/kernel/random/uuid)"
max_workers = 20
CONF
    # Root, since QEMU has to reach images below directories that belong to root alone.  Without the filter
    # libvirt 9 asks QEMU for 400 CPU properties, one by one, at each start of a guest: 0.3 seconds.
    cat >/etc/libvirt/qemu.conf <<'CONF'
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
capability_filters = [ "cpu-unavailable-features" ]
CONF
    [[ ! -d /run/$NAME/hugepages ]] ||
        echo "hugetlbfs_mount = \"/run/$NAME/hugepages\"" >>/etc/libvirt/qemu.conf
    # A copy, since sandboxes that run side by side must not read what another is just writing.
    mkdir -p "$CAPABILITIES"
    cp -p "$CACHE"/*.xml "$CAPABILITIES/" 2>/dev/null || true
}

keep_capabilities() {
    local found new
    mkdir -p "$CACHE"
    for found in "$CAPABILITIES"/*.xml; do
        [[ -e $found ]] || continue
        cmp -s "$found" "$CACHE/${found##*/}" && continue
        new=$(mktemp "$CACHE/.new.XXXXXX")
        cp -p "$found" "$new"
        mv -f "$new" "$CACHE/${found##*/}"
    done
}

keep_logs() {
    [[ -n ${KILONOVA_SANDBOX_LOGS:-} ]] || return 0
    mkdir -p "$KILONOVA_SANDBOX_LOGS"
    cp -r /var/log/libvirt /var/log/openvswitch "$KILONOVA_SANDBOX_LOGS/"
}

inside() {
    private_files
    configure_libvirt
    [[ ${KILONOVA_SANDBOX_BARE:-} == 1 ]] || "$HERE/host-daemons.sh" up >"/run/$NAME/start.log" 2>&1 ||
        fail "a daemon did not start"
    keep_capabilities
    local status=0
    KILONOVA_SANDBOX=1 "$@" || status=$?
    keep_capabilities
    keep_logs
    exit "$status" # pid 1 of the host: the kernel ends all the rest
}

if [[ ${1:-} == --inside ]]; then
    shift
    inside "$@"
else
    outside "$@"
fi
