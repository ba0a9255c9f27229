"""Tunnels to the hosts that share a network with this one: VXLAN ports of the integration bridge.

There is one to each such host.  Frames carry the VLAN of their network inside, which is the same on all
hosts, and a tunnel lets through only the networks that both of its ends have.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import structlog

from kilonova.l2agent.options import L2Options
from kilonova.l2agent.switch import OWNER, Switch, SwitchPort

log = structlog.get_logger("kilonova.l2agent")

KEY = "4011"  # the VXLAN network identifier of all our tunnels


class Tunnels:
    """``converge`` makes, changes and removes them; they outlive the agent."""

    def __init__(self, switch: Switch, options: L2Options, owner: str) -> None:
        self._switch = switch
        self._local_ip = options.local_ip
        self._udp_port = options.vxlan_port
        self._owner = owner
        self._wanted: dict[str, set[int]] = {}  # the peers and what they are to be sent
        self._names: set[str] = set()

    @property
    def enabled(self) -> bool:
        return bool(self._local_ip)

    def concerned(self, names: set[str]) -> bool:
        """Whether any of these ports is or was a tunnel."""
        ports = self._switch.ports()
        return any(name in self._names or (name in ports and self._is_ours(ports[name])) for name in names)

    def are_right(self) -> bool:
        """Whether the switch has what was wanted last, and no more."""
        ports = self._ours()
        return self._names == ports.keys() and all(
            self._is_right(ports[tunnel_name(peer)], peer, vlans) for peer, vlans in self._wanted.items()
        )

    def carried(self) -> set[int]:
        """The VLANs that have a tunnel, by the switch: also by what a former life made."""
        return {vlan for port in self._ours().values() for vlan in port.trunks}

    async def converge(self, reach: Iterable[tuple[int, tuple[str, ...]]], *, complete: bool) -> None:
        """Carry these networks, each a VLAN and its peers.

        ``complete``: these are all; until then nothing is taken away from what is there.
        """
        wanted = self._by_peer(reach) if self.enabled else {}
        ports = self._ours()
        if not complete:
            for port in ports.values():
                if (peer := port.options.get("remote_ip")) and self.enabled:
                    wanted.setdefault(peer, set()).update(port.trunks)
        self._wanted = wanted
        self._names = {tunnel_name(peer) for peer in wanted}
        if await self._make(wanted, ports):
            # Open vSwitch 3.1 obeys a change of a port's trunks only when it is told of something else, too
            await self._switch.applied()
        for name in sorted(ports.keys() - self._names) if complete else ():
            log.info("a tunnel is not needed any more", peer=ports[name].options.get("remote_ip"))
            await self._switch.remove_port(name)

    async def _make(self, wanted: dict[str, set[int]], ports: dict[str, SwitchPort]) -> bool:
        """Whether anything had to be done."""
        changed = False
        for peer, vlans in sorted(wanted.items()):
            known = ports.get(tunnel_name(peer))
            if known is not None and self._is_right(known, peer, vlans):
                continue
            log.info("a tunnel carries networks", peer=peer, vlans=len(vlans))
            ids, options = {OWNER: self._owner}, self._options(peer)
            await self._switch.have_tunnel(tunnel_name(peer), options=options, vlans=vlans, external_ids=ids)
            changed = True
        return changed

    def _by_peer(self, reach: Iterable[tuple[int, tuple[str, ...]]]) -> dict[str, set[int]]:
        found: dict[str, set[int]] = {}
        for vlan, peers in reach:
            for peer in peers:
                if peer != self._local_ip and _is_address(peer):
                    found.setdefault(peer, set()).add(vlan)
        return found

    def _options(self, peer: str) -> dict[str, str]:
        return {
            "remote_ip": peer,
            "local_ip": self._local_ip,
            "key": KEY,
            "dst_port": str(self._udp_port),
        }

    def _is_right(self, port: SwitchPort, peer: str, vlans: set[int]) -> bool:
        return (
            port.options == self._options(peer)
            and set(port.trunks) == vlans
            and (port.vlan_mode, port.tag, port.protected) == ("trunk", None, True)
        )

    def _ours(self) -> dict[str, SwitchPort]:
        ports = self._switch.ports()
        return {name: port for name, port in ports.items() if self._is_ours(port)}

    def _is_ours(self, port: SwitchPort) -> bool:
        return port.type == "vxlan" and port.owner == self._owner


def tunnel_name(peer: str) -> str:
    """As Neutron names them: ``vxlan-0ac6000b`` goes to 10.198.0.11."""
    return f"vxlan-{int(ipaddress.IPv4Address(peer)):08x}"


def _is_address(peer: str) -> bool:
    try:
        ipaddress.IPv4Address(peer)
    except ValueError:
        log.error("a host's tunnels end nowhere", peer=peer)
        return False
    return True
