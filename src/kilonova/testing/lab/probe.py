"""What is asked and seen from one place of the lab while something else goes on there, as lines of JSON.

    python -m kilonova.testing.lab.probe ...
        ping ADDRESS INTERVAL     {"at", "sent"} and {"at", "answered"}: numbers
        stream ADDRESS SCRIPT     {"at", "line"} of what the script goes on printing in a guest
        capture DEVICE            {"at", "source", "target", "kind", "data"}
        tags SOCKET               {"at", "port", "wiring"} of the integration bridge, at each change
        flows BRIDGE              {"at", "event", "flow"}: ADDED, MODIFIED or DELETED
        http ADDRESS PATH [BODY]  the page as it is

``at`` is the monotonic clock of the machine, which all hosts of the lab have.  All but the last run until
they are killed.  A ping is sent every INTERVAL seconds, whatever has become of those before.
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ECHO = 8
ALL_PROTOCOLS = 3


def _say(**what: Any) -> None:
    print(json.dumps({"at": round(time.monotonic(), 6), **what}), flush=True)


def ping(address: str, interval: str) -> None:
    link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    link.setblocking(False)
    number, due = 0, time.monotonic()
    while True:
        wait = due - time.monotonic()
        if wait <= 0:
            number, due = number + 1, due + float(interval)
            _send_echo(link, address, number)
        elif select.select([link], [], [], wait)[0]:
            packet, (sender, _) = link.recvfrom(65536)
            kind, _, _, identity, answered = struct.unpack_from("!BBHHH", packet, (packet[0] & 15) * 4)
            if (sender, kind, identity) == (address, 0, _IDENTITY):
                _say(answered=answered)


_IDENTITY = 0x6B6E


def _send_echo(link: socket.socket, address: str, number: int) -> None:
    head = struct.pack("!BBHHH", ECHO, 0, 0, _IDENTITY, number & 0xFFFF)
    total = sum(struct.unpack("!4H", head))
    total = (total >> 16) + (total & 0xFFFF)
    total += total >> 16
    message = head[:2] + struct.pack("!H", ~total & 0xFFFF) + head[4:]
    try:
        link.sendto(message, (address, 0))
    except OSError as error:  # as lost as one that was not answered
        _say(sent=number, failed=error.strerror)
    else:
        _say(sent=number)


def stream(address: str, script: str) -> None:
    with (
        _asked(address, "POST", "/cgi-bin/sh", script) as link,
        link.makefile("r", encoding="latin-1") as lines,
    ):
        for line in lines:
            _say(line=line.rstrip())
    _say(closed="by the guest")


def http(address: str, path: str, body: str = "") -> None:
    with _asked(address, "POST" if body else "GET", path, body) as link:
        link.settimeout(60)
        while data := link.recv(65536):
            sys.stdout.write(data.decode(errors="replace"))


def _asked(address: str, method: str, path: str, body: str) -> socket.socket:
    link = socket.create_connection((address, 80), timeout=10)
    link.settimeout(None)
    length = f"Content-Length: {len(body.encode())}\r\n"
    link.sendall(f"{method} {path} HTTP/1.0\r\nHost: {address}\r\n{length}\r\n{body}".encode())
    return link


def capture(device: str) -> None:
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    link.bind((device, ALL_PROTOCOLS))
    _say(capturing=device)
    while True:
        frame, (_, _, direction, *_) = link.recvfrom(65536)
        if direction != socket.PACKET_OUTGOING:
            ends = {"source": frame[6:12].hex(":"), "target": frame[:6].hex(":")}
            _say(**ends, kind=frame[12:14].hex(), data=frame[14:160].hex())


def tags(path: str) -> None:
    from kilonova.clock import SystemClock
    from kilonova.l2agent.ovsdb import Ovsdb
    from kilonova.l2agent.switch import TABLES, Switch

    async def watch() -> None:
        known: dict[str, Any] = {}

        def changed(names: set[str] | None = None) -> None:
            ports = switch.ports()
            for name in sorted(known.keys() | ports.keys()):
                port = ports.get(name)
                wiring = port and {
                    "port_id": port.iface_id,
                    "tag": port.tag,
                    "vlan_mode": port.vlan_mode,
                    "trunks": list(port.trunks),
                    "number": port.ofport,
                }
                if known.get(name) != wiring:
                    known[name] = wiring
                    _say(port=name, wiring=wiring)

        ovsdb = Ovsdb(f"unix:{path}", SystemClock())
        switch = Switch(ovsdb, "br-int", changed, changed)
        await ovsdb.open(TABLES, switch)
        _say(watching=path)
        await asyncio.Event().wait()

    asyncio.run(watch())


def flows(bridge: str) -> None:
    command = ["ovs-ofctl", "--no-names", "monitor", bridge, "watch:"]
    pipe, both = subprocess.PIPE, subprocess.STDOUT  # it tells of changes as of errors
    with subprocess.Popen(command, stdout=pipe, stderr=both, text=True) as monitor:
        assert monitor.stdout is not None
        for line in monitor.stdout:
            event, _, flow = line.strip().partition(" ")
            if event.startswith("event="):
                _say(event=event[6:], flow=flow)


PROBES: dict[str, Callable[..., None]] = {
    "ping": ping,
    "stream": stream,
    "http": http,
    "capture": capture,
    "tags": tags,
    "flows": flows,
}

if __name__ == "__main__":
    PROBES[sys.argv[1]](*sys.argv[2:])
