#!/usr/bin/env bash
# host-daemons.sh up|down|status - start the daemons that a host of real guests needs, where no init does.
#
# up      starts those of virtlogd, libvirtd, ovsdb-server and ovs-vswitchd that do not answer already, and
#         notes the process of each in /run/kilonova/daemons
# down    stops exactly those that a former "up" started, and nothing else
# status  one line each
#
# Needs root and the packages of tools/apt/run.txt.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
NOTES=/run/kilonova/daemons
DATABASE=/etc/openvswitch/conf.db
ALL=(ovsdb-server ovs-vswitchd virtlogd libvirtd) # in the order in which they are started

say() { echo "host daemons: $*" >&2; }

fail() {
    say "$*"
    tail -qn 5 "$NOTES"/*.log /var/log/openvswitch/*.log >&2 2>/dev/null || true
    exit 1
}

connects() { # connects SOCKET: whether somebody listens there
    python3 -c 'import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])' "$1" 2>/dev/null
}

answers() { # answers DAEMON
    case $1 in
        virtlogd) connects /run/libvirt/virtlogd-sock ;;
        libvirtd) virsh -q -c qemu:///system version >/dev/null 2>&1 ;;
        ovsdb-server) connects /run/openvswitch/db.sock ;;
        ovs-vswitchd) ovs-appctl --timeout=5 -t ovs-vswitchd version >/dev/null 2>&1 ;;
    esac
}

start() { # start DAEMON: in the background, with its pid in a file
    local pid_file=$NOTES/$1.pid
    rm -f "$pid_file"
    case $1 in
        virtlogd) virtlogd --daemon --pid-file "$pid_file" ;;
        libvirtd)
            give_kvm
            libvirtd --daemon --pid-file "$pid_file"
            ;;
        ovsdb-server)
            mkdir -p /run/openvswitch "${DATABASE%/*}"
            [[ -e $DATABASE ]] || ovsdb-tool create "$DATABASE"
            ovsdb-server "$DATABASE" --remote=punix:/run/openvswitch/db.sock \
                --pidfile --log-file --detach --no-chdir -vconsole:off
            ln -sf /run/openvswitch/ovsdb-server.pid "$pid_file"
            ovs-vsctl --timeout=10 --no-wait init -- set Open_vSwitch . \
                "external_ids:system-id=$(hostname)" "external_ids:hostname=$(hostname)"
            ;;
        ovs-vswitchd)
            ovs-vswitchd unix:/run/openvswitch/db.sock --pidfile --log-file --detach --no-chdir -vconsole:off
            ln -sf /run/openvswitch/ovs-vswitchd.pid "$pid_file"
            ;;
    esac
}

give_kvm() { # as udev does where there is one: QEMU's user may use /dev/kvm
    # While libvirtd may and QEMU's user may not, libvirt never believes what it found out about QEMU, and
    # asks it all again at each start of a guest: half a minute.
    [[ -e /dev/kvm ]] && getent group kvm >/dev/null || return 0
    [[ $(stat -c %G:%a /dev/kvm) == root:600 ]] || return 0 # somebody else has cared for it
    chgrp kvm /dev/kvm
    chmod 660 /dev/kvm
}

birth() { # birth PID: when it was started; with the pid it names a process for ever
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20
}

ours() { # ours DAEMON: the pid that a former "up" noted, if that very process still runs
    local pid born
    read -r pid born 2>/dev/null <"$NOTES/$1" || return 1
    [[ -n $born && $(birth "$pid") == "$born" ]] && echo "$pid"
}

up() {
    local daemon tries pid
    mkdir -p "$NOTES" /run/libvirt
    for daemon in "${ALL[@]}"; do
        if answers "$daemon"; then
            say "$daemon runs already"
            continue
        fi
        start "$daemon" >"$NOTES/$daemon.log" 2>&1 </dev/null || fail "$daemon did not start"
        for ((tries = 0; tries < 1200; tries++)); do
            answers "$daemon" && break
            sleep 0.05
        done
        answers "$daemon" || fail "$daemon does not answer after a minute"
        pid=$(cat "$NOTES/$daemon.pid")
        echo "$pid $(birth "$pid")" >"$NOTES/$daemon"
        say "$daemon started (process $pid)"
    done
}

stop() { # stop DAEMON PID; a switch takes its devices along
    [[ $1 == ovs-vswitchd ]] && ovs-appctl --timeout=20 -t ovs-vswitchd exit --cleanup && return
    kill "$2"
}

down() {
    local number daemon pid tries
    for ((number = ${#ALL[@]} - 1; number >= 0; number--)); do
        daemon=${ALL[number]}
        if pid=$(ours "$daemon"); then
            stop "$daemon" "$pid"
            for ((tries = 0; tries < 200; tries++)); do
                ours "$daemon" >/dev/null || break
                sleep 0.05
            done
            ours "$daemon" >/dev/null && fail "$daemon (process $pid) does not end"
            say "$daemon stopped"
        fi
        rm -f "$NOTES/$daemon" "$NOTES/$daemon.pid" "$NOTES/$daemon.log"
    done
}

status() {
    local daemon
    for daemon in "${ALL[@]}"; do
        if ! answers "$daemon"; then
            echo "$daemon: does not answer"
        elif ours "$daemon" >/dev/null; then
            echo "$daemon: runs, started by us (process $(ours "$daemon"))"
        else
            echo "$daemon: runs, started by others"
        fi
    done
}

case ${1:-} in
    up | down | status)
        [[ $EUID == 0 ]] || { say "this needs root"; exit 1; }
        "$1"
        ;;
    *) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
