"""A small OpenFlow switch in Python: what becomes of a packet under flows as ovs-ofctl reads them."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable

import msgspec

IPV4, IPV6, ARP, RARP = 0x0800, 0x86DD, 0x0806, 0x8035
_KINDS = {"ip": IPV4, "ipv6": IPV6, "arp": ARP, "rarp": RARP}
_PROTOCOLS = {
    "tcp": (IPV4, 6),
    "udp": (IPV4, 17),
    "icmp": (IPV4, 1),
    "tcp6": (IPV6, 6),
    "udp6": (IPV6, 17),
    "icmp6": (IPV6, 58),
}


class Packet(msgspec.Struct, kw_only=True):
    """What a switch sees of a frame.  ``tag`` None: no VLAN tag."""

    in_port: int
    dl_src: str
    dl_dst: str
    kind: int = IPV4
    tag: int | None = None
    src: str = ""  # of IP, or of ARP's sender
    dst: str = ""
    proto: int = 0
    sport: int = 0
    dport: int = 0  # for ICMP: sport is the type, dport the code
    fragment: str = ""  # "first" or "later"
    arp_op: int = 1
    arp_sha: str = ""
    arp_tha: str = "00:00:00:00:00:00"
    nd_target: str = ""


class Flow(msgspec.Struct, frozen=True):
    table: int
    priority: int
    match: tuple[str, ...]
    actions: tuple[str, ...]


@functools.cache
def parse(line: str) -> Flow:
    head, _, actions = line.partition(",actions=")
    fields = dict(part.partition("=")[::2] for part in head.split(",", 3)[:3])
    assert set(fields) == {"cookie", "table", "priority"}, line
    rest = head.split(",", 3)[3:]
    match = tuple(rest[0].split(",")) if rest else ()
    return Flow(int(fields["table"]), int(fields["priority"]), match, tuple(_split(actions)))


def _split(actions: str) -> Iterable[str]:
    """At the commas that are in no parentheses."""
    depth, word = 0, ""
    for letter in actions:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            yield word
            word = ""
        else:
            word += letter
    yield word


class Pipeline:
    """``forwards`` says whether a packet comes to NORMAL, ``outputs`` to which ports besides.

    Connections are remembered, zone by zone, and what flows have learnt.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.connections: dict[tuple[int, tuple[object, ...]], int] = {}  # zone and tuple -> mark
        self.replace(lines)

    def replace(self, lines: Iterable[str]) -> None:
        self._tables: dict[int, list[Flow]] = {}
        for flow in sorted((parse(line) for line in lines), key=lambda flow: -flow.priority):
            self._tables.setdefault(flow.table, []).append(flow)

    def outputs(self, packet: Packet) -> set[int]:
        """The ports to which it goes tagged with its network, whatever NORMAL would say."""
        self.forwards(packet)
        return self._outputs

    def forwards(self, packet: Packet) -> bool:
        state = _State()
        self._outputs: set[int] = set()
        table: int | None = 0
        forwarded = False
        for _ in range(20):
            if table is None:
                return forwarded
            flow = next((each for each in self._tables.get(table, []) if _matches(each, packet, state)), None)
            if flow is None:
                return False
            table, normal = self._act(flow, packet, state)
            forwarded |= normal
        raise AssertionError("the packet goes round in circles")

    def _act(self, flow: Flow, packet: Packet, state: _State) -> tuple[int | None, bool]:
        """The next table, and whether it was forwarded."""
        table: int | None = None
        normal = False
        for action in flow.actions:
            if action == "NORMAL":
                normal = True
            elif action.startswith("goto_table:"):
                table = int(action.partition(":")[2])
            elif found := re.fullmatch(r"load:(\d+)->NXM_NX_REG([567])\[\]", action):
                state.registers[int(found[2])] = int(found[1])
            elif action == "move:OXM_OF_VLAN_VID[0..11]->NXM_NX_REG5[0..11]":
                state.registers[5] = packet.tag or 0
            elif action == "move:NXM_NX_REG5[0..11]->OXM_OF_VLAN_VID[0..11]":
                assert flow.actions[0] == "push_vlan:0x8100"
            elif self._acted_on_moves(action, packet, state):
                pass
            elif found := re.fullmatch(r"ct\(table=(\d+),zone=NXM_NX_REG6\[0\.\.15\]\)", action):
                table = int(found[1])
                self._track(packet, state)
            elif found := re.fullmatch(
                r"ct\(commit,zone=NXM_NX_REG6\[0\.\.15\],exec\(set_field:([01])->ct_mark\)\)", action
            ):
                self._commit(packet, state, int(found[1]))
            else:
                assert action in ("drop", "push_vlan:0x8100"), action
        return table, normal

    def _acted_on_moves(self, action: str, packet: Packet, state: _State) -> bool:
        """What is done for guests that are bound to two hosts; whether this was such an action."""
        if found := re.fullmatch(r"output:(\d+)", action):
            self._outputs.add(int(found[1]))
        elif found := re.fullmatch(r"resubmit\(,(\d+)\)", action):
            self._resubmit(int(found[1]), packet, state)
        elif found := re.fullmatch(r"learn\(table=(\d+),cookie=\w+,(.*),(load:[^,]*)\)", action):
            learnt = Flow(int(found[1]), 32768, tuple(found[2].split(",")), (found[3],))
            kept = [each for each in self._tables.get(learnt.table, []) if each.match != learnt.match]
            self._tables[learnt.table] = [learnt, *kept]
        else:
            return False
        return True

    def _resubmit(self, table: int, packet: Packet, state: _State) -> None:
        for flow in self._tables.get(table, []):
            if _matches(flow, packet, state):
                self._act(flow, packet, state)
                return

    def _track(self, packet: Packet, state: _State) -> None:
        zone, forward, backward = state.registers[6], _tuple(packet), _tuple(packet, back=True)
        assert zone, "tracked without a zone"
        if (zone, forward) in self.connections:
            state.ct, state.mark = {"trk", "est"}, self.connections[zone, forward]
        elif (zone, backward) in self.connections:
            state.ct, state.mark = {"trk", "est", "rpl"}, self.connections[zone, backward]
        else:
            state.ct, state.mark = {"trk", "new"}, 0

    def _commit(self, packet: Packet, state: _State, mark: int) -> None:
        key = state.registers[6], _tuple(packet, back="rpl" in state.ct)
        self.connections[key] = mark


class _State:
    def __init__(self) -> None:
        self.registers = {5: 0, 6: 0, 7: 0}
        self.ct: set[str] = set()
        self.mark = 0


def _tuple(packet: Packet, *, back: bool = False) -> tuple[object, ...]:
    if packet.proto in (1, 58):
        ends = [(packet.src, 0), (packet.dst, 0)]
    else:
        ends = [(packet.src, packet.sport), (packet.dst, packet.dport)]
    return (packet.kind, packet.proto, *(reversed(ends) if back else ends))


def _matches(flow: Flow, packet: Packet, state: _State) -> bool:
    return all(_holds(term, packet, state) for term in flow.match)


def _holds(term: str, packet: Packet, state: _State) -> bool:
    name, _, value = term.partition("=")
    if not value:
        if name in _KINDS:
            return packet.kind == _KINDS[name]
        return (packet.kind, packet.proto) == _PROTOCOLS[name]
    if name in ("reg5", "reg6", "reg7"):
        return state.registers[int(name[3])] == int(value)
    if name == "ct_state":
        signs = re.findall(r"([+-])(\w+)", value)
        return all((sign == "+") == (flag in state.ct) for sign, flag in signs)
    if name == "ct_mark":
        return state.mark == int(value)
    return _packet_holds(name, value, packet)


def _packet_holds(name: str, value: str, packet: Packet) -> bool:
    if name == "vlan_tci":
        return (packet.tag is not None) == {"0x0000/0x1000": False, "0x1000/0x1000": True}[value]
    if name == "dl_vlan":
        return packet.tag == int(value)
    if name == "nw_frag":
        return packet.fragment == value
    later = packet.fragment == "later"
    if name in ("in_port", "nw_proto", "arp_op"):
        seen = {"in_port": packet.in_port, "nw_proto": packet.proto, "arp_op": packet.arp_op}[name]
        return seen == int(value)
    if name in ("tp_src", "tp_dst", "icmp_type", "icmp_code"):
        number = packet.sport if name in ("tp_src", "icmp_type") else packet.dport
        want, _, mask = value.partition("/")
        return (0 if later else number) & int(mask or "0xffff", 16) == int(want, 0)
    if name in ("dl_src", "arp_sha", "arp_tha"):
        return {"dl_src": packet.dl_src, "arp_sha": packet.arp_sha, "arp_tha": packet.arp_tha}[name] == value
    if name == "dl_dst":
        if "/" in value:
            assert value == "01:00:00:00:00:00/01:00:00:00:00:00"
            return bool(int(packet.dl_dst[:2], 16) & 1)
        return packet.dl_dst == value
    address = {
        "nw_src": packet.src,
        "ipv6_src": packet.src,
        "arp_spa": packet.src,
        "nw_dst": packet.dst,
        "ipv6_dst": packet.dst,
        "nd_target": packet.nd_target,
    }[name]
    return bool(address) and ipaddress.ip_address(address) in ipaddress.ip_network(value)
