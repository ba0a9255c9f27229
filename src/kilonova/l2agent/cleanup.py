"""Leaving a host: what the layer-2 agent and os-vif made there is taken away.

As neutron-ovs-cleanup and neutron-netns-cleanup do, and like them only to be used when no guest runs.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable

from kilonova.clock import Clock
from kilonova.errors import Failed
from kilonova.l2agent.network import LocalNetwork, place_of, recorded_networks
from kilonova.l2agent.options import L2Options
from kilonova.l2agent.ovsdb import Ovsdb
from kilonova.l2agent.switch import TABLES, Switch
from kilonova.programs import run


async def clean_up(ovsdb_connection: str, options: L2Options, clock: Clock) -> list[str]:
    """Remove every guest's port with its tap, and every network with its namespace and DHCP server.

    Returns what was removed, in words.  The bridge stays.  Raises Unreachable without Open vSwitch.
    """
    ovsdb = Ovsdb(ovsdb_connection, clock)
    switch = Switch(ovsdb, options.bridge, lambda names: None)
    place = place_of(options)
    removed: list[str] = []
    await ovsdb.open(TABLES, switch)
    try:
        for port_id, port in sorted(switch.guest_ports().items()):
            await switch.remove_port(port.name)
            if _has_device(port.name):
                await run("ip", "link", "delete", "dev", port.name)
            removed.append(f"port {port_id} ({port.name})")
        for network_id in recorded_networks(place.directory):
            await LocalNetwork(network_id, switch, _serve_nothing, place).remove()
            removed.append(f"network {network_id}")
        for name, port in sorted(switch.ports().items()):
            if port.type == "vxlan" and port.owner == place.owner:
                await switch.remove_port(name)
                removed.append(f"tunnel to {port.options.get('remote_ip')} ({name})")
    finally:
        await ovsdb.close()
    return removed


def _has_device(name: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(socket.if_nametoindex(name))
    return False


async def _serve_nothing(network_id: str, listening: socket.socket) -> Callable[[], Awaitable[None]]:
    raise Failed(f"The network {network_id} is being removed and serves nothing.")
