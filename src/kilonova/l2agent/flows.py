"""The flows of the integration bridge.  Everything that is not let through by a flow is dropped.

The last action is always NORMAL: the switch forwards by VLAN tag and learnt addresses as without flows.  A
port is in no VLAN before its flows are in, so either gate alone keeps an unwired guest apart.

====== ================= =====================================================================
table  name              what it does
====== ================= =====================================================================
0      CLASSIFY          by port: network (reg5 = VLAN) and connection zone (reg6) of the sender.
                         Guests -> 10 (or 60 without port security), the DHCP port and tunnels -> 60.
                         Ports that are unknown, and tagged frames from guests, are dropped here.
10     SPOOFING          what a guest says of itself: MAC, ARP sender and source address must be its own.
                         Nothing to a DHCP client and no router advertisement from a guest.  ARP, neighbour
                         discovery and DHCP requests -> 60; IP -> connection tracking -> 20.
20     EGRESS            connection tracked, rules of direction egress -> 30.
30     EGRESS_ACCEPT     remember the connection -> 60
60     DISPATCH          by network and destination MAC: the guest (reg6 = its zone) -> 70; one that
                         is bound to another host, too, while it moves -> 62.
                         To a group address only what is addressed to a group in IP as well.
                         Everything else (the DHCP port, other hosts, broadcast) NORMAL.
61     SEEN              of a guest that moves: whether it has sent something last from here (reg7 = 1).
62     MOVING            to a guest that is here, and what came by a tunnel: -> 70.  Else it runs at the
                         other host, where it is filtered: to all tunnels.
63     ELSEWHERE         what guests that move send from the other host: they are not here.
70     DELIVERY          ARP, neighbour discovery, DHCP answers: NORMAL; IP -> tracking -> 80.
80     INGRESS           rules of direction ingress -> 90
90     INGRESS_ACCEPT    remember the connection, NORMAL
====== ================= =====================================================================

Connections are tracked in a zone a port.  A packet in the direction in which its connection was opened has
to match a rule every time; answers pass because the connection is known, and for no other reason.  When rules
change and a known connection matches none any more it gets ct_mark 1, and its answers stop as well; a rule
that comes back takes the mark away.  Broadcast and multicast are filtered by the sender's egress rules only.

Every flow has a cookie that says whose it is, so that a port's flows are exchanged in one bundle: there is
no moment with neither the old ones nor the new.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator

import structlog

from kilonova.errors import Invalid
from kilonova.l2agent.rules import rule_matches
from kilonova.model.wiring import FilterRule, NetworkDetails, PortDetails

log = structlog.get_logger("kilonova.l2agent")

CLASSIFY, SPOOFING, EGRESS, EGRESS_ACCEPT = 0, 10, 20, 30
DISPATCH, SEEN, MOVING, ELSEWHERE, DELIVERY, INGRESS, INGRESS_ACCEPT = 60, 61, 62, 63, 70, 80, 90

METADATA_ADDRESS = "169.254.169.254"

_MARK = 0x6B6E << 48  # "kn"
_BASE, _PORT, _NETWORK, _TRUNK = 0, 1, 2, 3
_ZONE = "zone=NXM_NX_REG6[0..15]"
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_GROUP = "dl_dst=01:00:00:00:00:00/01:00:00:00:00:00"
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT = 135, 136
_ROUTER_SOLICITATION, _ROUTER_ADVERTISEMENT, _REDIRECT = 133, 134, 137
_LISTENER_REPORTS = (131, 132, 143)

Address = ipaddress.IPv4Network | ipaddress.IPv6Network


def base_cookie() -> int:
    return _MARK | _BASE << 32


def port_cookie(zone: int) -> int:
    return _MARK | _PORT << 32 | zone


def network_cookie(vlan: int) -> int:
    return _MARK | _NETWORK << 32 | vlan


def trunk_cookie(ofport: int) -> int:
    return _MARK | _TRUNK << 32 | ofport


def delete(cookie: int) -> str:
    """The line that removes all flows of a cookie."""
    return f"delete cookie={cookie:#x}/-1"


def adding(flows: Iterable[str]) -> list[str]:
    return [f"add {flow}" for flow in flows]


def base_flows() -> list[str]:
    """What does not depend on ports."""
    flow = _Writer(base_cookie())
    for table in (CLASSIFY, SPOOFING, EGRESS, MOVING, DELIVERY, INGRESS):
        flow(table, 0, "", "drop")
    for forbidden in ("udp,tp_dst=68", "udp6,tp_dst=546"):  # clients mind not from which port they are told
        flow(SPOOFING, 200, forbidden, "drop")
    for kind in (_ROUTER_ADVERTISEMENT, _REDIRECT):
        flow(SPOOFING, 200, f"icmp6,icmp_type={kind}", "drop")
    flow(SPOOFING, 90, f"icmp6,icmp_type={_NEIGHBOUR_ADVERTISEMENT}", "drop")  # of an address not its own
    flow(DISPATCH, 0, "", "NORMAL")
    flow(MOVING, 100, "reg7=1", f"goto_table:{DELIVERY}")
    flow(DISPATCH, 60, f"ip,{_GROUP},nw_dst=224.0.0.0/4", "NORMAL")
    flow(DISPATCH, 60, f"ip,{_GROUP},nw_dst=255.255.255.255", "NORMAL")
    flow(DISPATCH, 60, f"ipv6,{_GROUP},ipv6_dst=ff00::/8", "NORMAL")
    flow(DISPATCH, 50, f"ip,{_GROUP}", "drop")
    flow(DISPATCH, 50, f"ipv6,{_GROUP}", "drop")
    _tracked(flow, EGRESS, EGRESS_ACCEPT, f"goto_table:{DISPATCH}")
    metadata = f"tcp,ct_state=+trk,nw_dst={METADATA_ADDRESS},tp_dst=80"
    flow(EGRESS, 180, metadata, f"goto_table:{EGRESS_ACCEPT}")
    _tracked(flow, INGRESS, INGRESS_ACCEPT, "NORMAL")
    flow(DELIVERY, 100, "arp", "NORMAL")
    for kind in (130, *range(_ROUTER_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT + 1)):
        flow(DELIVERY, 100, f"icmp6,icmp_type={kind}", "NORMAL")
    flow(DELIVERY, 100, "udp,tp_src=67,tp_dst=68", "NORMAL")
    flow(DELIVERY, 100, "udp6,tp_src=547,tp_dst=546", "NORMAL")
    for family in ("ip", "ipv6"):
        flow(DELIVERY, 50, family, f"ct(table={INGRESS},{_ZONE})")
    return flow.flows


def _tracked(flow: _Writer, table: int, accept: int, onward: str) -> None:
    for family in ("ip", "ipv6"):
        flow(table, 200, f"{family},ct_state=+inv+trk", "drop")
        flow(table, 190, f"{family},ct_state=+est+rpl+trk,ct_mark=0", onward)
        flow(table, 190, f"{family},ct_state=-new-est+rel+trk,ct_mark=0", onward)
        lapsed = f"ct(commit,{_ZONE},exec(set_field:1->ct_mark))"
        flow(table, 10, f"{family},ct_state=+est-rpl+trk,ct_mark=0", lapsed)
        flow(accept, 10, f"{family},ct_state=+est-new+trk,ct_mark=0", onward)
        flow(accept, 0, family, f"ct(commit,{_ZONE},exec(set_field:0->ct_mark)),{onward}")


def trunk_flows(ofport: int) -> list[str]:
    """A tunnel or patch port: its frames say their VLAN."""
    flow = _Writer(trunk_cookie(ofport))
    flow(MOVING, 50, f"in_port={_number(ofport)}", f"goto_table:{DELIVERY}")
    onward = f"move:OXM_OF_VLAN_VID[0..11]->NXM_NX_REG5[0..11],resubmit(,{ELSEWHERE}),goto_table:{DISPATCH}"
    flow(CLASSIFY, 50, f"in_port={_number(ofport)},vlan_tci=0x1000/0x1000", onward)
    return flow.flows


def all_trunks_flows(ofports: Iterable[int]) -> list[str]:
    """What is for a guest that runs elsewhere goes to all trunks, also when nobody knows to which."""
    flow = _Writer(trunk_cookie(0))
    outputs = ",".join(f"output:{_number(ofport)}" for ofport in sorted(ofports))
    if outputs:
        vlan = "push_vlan:0x8100,move:NXM_NX_REG5[0..11]->OXM_OF_VLAN_VID[0..11]"
        flow(MOVING, 10, "", f"{vlan},{outputs}")
    return flow.flows


def network_flows(network: NetworkDetails, dhcp_ofport: int) -> list[str]:
    """The network's own port on this host, and its broadcast addresses.

    Each host has such a port with the same MAC: nothing of another host's may come here.
    """
    vlan = _vlan(network.vlan)
    flow = _Writer(network_cookie(vlan))
    flow(CLASSIFY, 120, f"dl_vlan={vlan},dl_src={server_mac(network.network_id)}", "drop")
    flow(CLASSIFY, 80, f"in_port={_number(dhcp_ofport)}", f"load:{vlan}->NXM_NX_REG5[],goto_table:{DISPATCH}")
    for subnet in network.subnets:
        cidr = _address(subnet.cidr)
        if cidr.version == 4 and cidr.prefixlen < 31:
            match = f"reg5={vlan},ip,dl_dst=ff:ff:ff:ff:ff:ff,nw_dst={cidr.broadcast_address}"
            flow(DISPATCH, 60, match, "NORMAL")
    return flow.flows


def port_flows(port: PortDetails, ofport: int, zone: int) -> list[str]:
    """All flows of a guest's port.  Raises Invalid for addresses or a VLAN that make no sense."""
    flow = _Writer(port_cookie(zone))
    vlan, mac = _vlan(port.vlan), _mac(port.mac)
    untagged = f"in_port={_number(ofport)},vlan_tci=0x0000/0x1000"
    enter = f"load:{vlan}->NXM_NX_REG5[],load:{zone}->NXM_NX_REG6[]"
    if port.moving:
        enter += f",{_seen(port, zone, here=True)}"
        flow(ELSEWHERE, 100, f"reg5={vlan},dl_src={mac}", _seen(port, zone, here=False))
    if not port.port_security:
        flow(CLASSIFY, 110, f"{untagged},dl_src={server_mac(port.network_id)}", "drop")
        flow(CLASSIFY, 100, untagged, f"{enter},goto_table:{DISPATCH}")
        return flow.flows
    flow(CLASSIFY, 100, untagged, f"{enter},goto_table:{SPOOFING}")
    identities = _identities(port, mac)
    for priority, match, action in _spoofing(identities):
        flow(SPOOFING, priority, f"in_port={ofport},{match}", action)
    deliver = f"load:{zone}->NXM_NX_REG6[],goto_table:{DELIVERY}"
    if port.moving:
        here = f"load:{int(port.active)}->NXM_NX_REG7[]"
        deliver = f"load:{zone}->NXM_NX_REG6[],{here},resubmit(,{SEEN}),goto_table:{MOVING}"
    flow(DISPATCH, 65535, f"reg5={vlan},dl_dst={mac}", deliver)
    for other in dict.fromkeys(identity[0] for identity in identities if identity[0] != mac):
        # Several ports may share a MAC (VRRP): priorities that differ keep each one's flow alive.
        flow(DISPATCH, 100 + zone % 65000, f"reg5={vlan},dl_dst={other}", deliver)
    for rule in port.rules:
        table, accept = (INGRESS, INGRESS_ACCEPT) if rule.direction == "ingress" else (EGRESS, EGRESS_ACCEPT)
        for match in _understood(rule, port):
            flow(table, 100, f"reg6={zone},ct_state=-rpl+trk,{match}", f"goto_table:{accept}")
    return flow.flows


def _seen(port: PortDetails, zone: int, *, here: bool) -> str:
    """Whatever a guest sends tells where it runs."""
    match = f"reg5={port.vlan},dl_dst={_mac(port.mac)}"
    return f"learn(table={SEEN},cookie={port_cookie(zone):#x},{match},load:{int(here)}->NXM_NX_REG7[])"


def server_mac(network_id: str) -> str:
    """Of a network's own port: the same on every host, so that a guest that moves finds what it knows."""
    digest = hashlib.sha256(network_id.encode()).digest()
    return ":".join(f"{octet:02x}" for octet in b"\x02\x6b\x6e" + digest[:3])


def _understood(rule: FilterRule, port: PortDetails) -> list[str]:
    """The matches of a rule; none of one that makes no sense, so that the others still hold."""
    try:
        return rule_matches(rule)
    except Invalid as error:
        log.error("a security group rule admits nobody", port=port.port_id, error=str(error))
        return []


def _identities(port: PortDetails, mac: str) -> list[tuple[str, Address]]:
    """What the guest may call itself: pairs of a MAC and an address or a range of addresses."""
    own = [(mac, _address(text)) for text in port.addresses]
    pairs = [(_mac(other), _address(text)) for other, text in port.allowed_pairs]
    macs = dict.fromkeys([mac, *(other for other, _ in pairs)])
    return list(dict.fromkeys([*own, *pairs, *((each, link_local(each)) for each in macs)]))


def _spoofing(identities: list[tuple[str, Address]]) -> Iterator[tuple[int, str, str]]:
    """(priority, match, action); what no guest may send is in the base flows, at 200 and 90."""
    onward = f"goto_table:{DISPATCH}"
    track = f"ct(table={EGRESS},{_ZONE})"
    for mac in dict.fromkeys(mac for mac, _ in identities):
        yield 100, f"arp,dl_src={mac},arp_sha={mac},arp_spa=0.0.0.0,arp_op=1", onward  # a probe, RFC 5227
        # QEMU tells the switches with it where a guest has moved to
        yield 100, f"rarp,dl_src={mac},arp_sha={mac},arp_tha={mac},arp_spa=0.0.0.0,arp_op=3", onward
        yield 100, f"udp,dl_src={mac},nw_src=0.0.0.0,tp_src=68,tp_dst=67", onward
        local = link_local(mac)
        yield 100, f"udp6,dl_src={mac},ipv6_src={local},tp_src=546,tp_dst=547", onward
        for source in ("::", local):
            for kind in (_ROUTER_SOLICITATION, *_LISTENER_REPORTS):
                yield 100, f"icmp6,icmp_type={kind},dl_src={mac},ipv6_src={source}", onward
        yield 100, f"icmp6,icmp_type={_NEIGHBOUR_SOLICITATION},dl_src={mac},ipv6_src=::", onward
    for mac, address in identities:
        if address.version == 4:
            yield 100, f"arp,dl_src={mac},arp_sha={mac},arp_spa={address}", onward
            yield 100, f"udp,dl_src={mac},nw_src={address},tp_src=68,tp_dst=67", onward
            yield 80, f"ip,dl_src={mac},nw_src={address}", track
        else:
            yield 100, f"icmp6,icmp_type={_NEIGHBOUR_SOLICITATION},dl_src={mac},ipv6_src={address}", onward
            yield 100, f"icmp6,icmp_type={_NEIGHBOUR_ADVERTISEMENT},dl_src={mac},nd_target={address}", onward
            yield 80, f"ipv6,dl_src={mac},ipv6_src={address}", track


def link_local(mac: str) -> ipaddress.IPv6Network:
    """The address that IPv6 makes of a MAC (EUI-64)."""
    octets = bytes(int(part, 16) for part in mac.split(":"))
    octets = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return ipaddress.IPv6Network(b"\xfe\x80" + bytes(6) + octets)


class _Writer:
    """Collects the flows of one cookie; of two with one match the first counts."""

    def __init__(self, cookie: int) -> None:
        self.flows: list[str] = []
        self._cookie = cookie
        self._seen: set[tuple[int, int, str]] = set()

    def __call__(self, table: int, priority: int, match: str, actions: str) -> None:
        key = (table, priority, match)
        if key in self._seen:
            return
        self._seen.add(key)
        where = f"table={table},priority={priority}{',' if match else ''}{match}"
        self.flows.append(f"cookie={self._cookie:#x},{where},actions={actions}")


def _vlan(vlan: int) -> int:
    if not 1 <= vlan <= 4094:
        raise Invalid(f"{vlan} is no VLAN for a network; it is between 1 and 4094.")
    return vlan


def _number(ofport: int) -> int:
    if not 0 < ofport < 0xFF00:
        raise Invalid(f"{ofport} is no number of a port of the switch.")
    return ofport


def _mac(text: str) -> str:
    mac = text.lower()
    if not _MAC.fullmatch(mac):
        raise Invalid(f"'{text}' is no MAC address.")
    return mac


def _address(text: str) -> Address:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise Invalid(f"'{text}' is no IP address and no range of them.") from None
