"""The mirror of the switch's database: ports as they come, change and go."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.clock import SystemClock
from kilonova.l2agent.ovsdb import Ovsdb
from kilonova.l2agent.switch import Switch

EMPTY = ["set", []]


def interface(name: str, ofport: Any = 5, kind: str = "", **ids: str) -> dict[str, Any]:
    pairs = [[key.replace("_", "-"), value] for key, value in ids.items()]
    return {"name": name, "type": kind, "ofport": ofport, "external_ids": ["map", pairs], "error": EMPTY}


def port(name: str, *interfaces: str, **more: Any) -> dict[str, Any]:
    rows = [["uuid", each] for each in interfaces or (f"i-{name}",)]
    found = {
        "name": name,
        "interfaces": rows[0] if len(rows) == 1 else ["set", rows],
        "external_ids": ["map", []],
    }
    return {**found, "tag": EMPTY, "vlan_mode": EMPTY, "trunks": EMPTY, **more}


def bridge(*ports: str) -> dict[str, Any]:
    rows = [["uuid", f"p-{each}"] for each in ports]
    return {"name": "br-int", "ports": ["set", rows], "datapath_type": "netdev", "fail_mode": "secure"}


class Seen:
    def __init__(self) -> None:
        self.names: list[set[str]] = []
        self.contents = 0
        self.switch = Switch(Ovsdb("unix:/none", SystemClock()), "br-int", self.names.append, self._content)

    def _content(self) -> None:
        self.contents += 1

    def change(self, **tables: dict[str, Any]) -> set[str] | None:
        """Which names were told; None if nothing was."""
        before = len(self.names)
        self.switch.changed(
            {
                table: {uuid: {"new": row} if row else {"old": {}} for uuid, row in rows.items()}
                for table, rows in tables.items()
            }
        )
        assert len(self.names) - before <= 1
        return self.names[-1] if len(self.names) > before else None


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_a_port_is_seen_with_its_interface_and_each_change_is_told_once(seen: Seen) -> None:
    assert seen.change(Bridge={"b": bridge("tap1")}) == set() and seen.switch.exists
    assert seen.change(Port={"p-tap1": port("tap1")}) is None  # it has no interface yet
    assert seen.change(Interface={"i-tap1": interface("tap1", iface_id="id-1")}) == {"tap1"}
    assert seen.switch.guest_ports()["id-1"].ofport == 5
    assert seen.change(Interface={"i-tap1": interface("tap1", iface_id="id-1")}) is None
    assert seen.change(Interface={"i-tap1": interface("tap1", ofport=-1, iface_id="id-1")}) == {"tap1"}
    assert seen.switch.guest_ports()["id-1"].ofport is None
    assert seen.change(Bridge={"b": bridge()}) == {"tap1"}
    assert seen.switch.ports() == {}
    assert seen.change(Bridge={"b": None}) == set() and not seen.switch.exists


def test_new_content_replaces_what_was_known_and_tells_the_difference(seen: Seen) -> None:
    rows = {"p-a": port("a"), "p-b": port("b")}
    devices = {"i-a": interface("a"), "i-b": interface("b")}
    seen.change(Bridge={"b": bridge("a", "b")}, Port=rows, Interface=devices)
    new = {
        "Bridge": {"b": {"new": bridge("b", "c")}},
        "Port": {"p-b": {"new": port("b")}, "p-c": {"new": port("c")}},
        "Interface": {"i-b": {"new": interface("b")}, "i-c": {"new": interface("c")}},
    }
    seen.switch.content(new)
    assert seen.names[-1] == {"a", "c"} and seen.contents == 1
    assert sorted(seen.switch.ports()) == ["b", "c"]


def test_other_bridges_and_bonds_are_not_ours(seen: Seen) -> None:
    other = {**bridge("x"), "name": "br-ex"}
    bond = port("bond", "i-1", "i-2")
    seen.change(
        Bridge={"b": bridge("bond"), "o": other},
        Port={"p-bond": bond, "p-x": port("x")},
        Interface={"i-1": interface("e1"), "i-2": interface("e2"), "i-x": interface("x")},
    )
    assert seen.switch.ports() == {}


def test_of_two_ports_with_one_id_that_with_a_device_counts(seen: Seen) -> None:
    for order in (("old", "new"), ("new", "old")):
        seen.switch.content({})
        seen.change(
            Bridge={"b": bridge(*order)},
            Port={f"p-{name}": port(name) for name in order},
            Interface={
                "i-old": interface("old", ofport=-1, iface_id="id"),
                "i-new": interface("new", ofport=7, iface_id="id"),
            },
        )
        assert seen.switch.guest_ports()["id"].name == "new"


@pytest.mark.parametrize(
    ("columns", "dead", "access"),
    [
        ({"tag": 4095, "vlan_mode": "trunk", "trunks": 4095}, True, False),
        ({"tag": 4095, "vlan_mode": "access"}, False, False),  # two such ports would talk to each other
        ({"tag": 4095}, False, False),
        ({"tag": 4095, "vlan_mode": "trunk", "trunks": ["set", [10, 4095]]}, False, False),
        ({"tag": 10, "vlan_mode": "access"}, False, True),
        ({"tag": 10, "vlan_mode": "access", "trunks": 4095}, False, False),
        ({"tag": 10}, False, False),
        ({"tag": 11, "vlan_mode": "access"}, False, False),
    ],
)
def test_what_is_dead_and_what_is_in_its_vlan(
    seen: Seen, columns: dict[str, Any], dead: bool, access: bool
) -> None:
    seen.change(
        Bridge={"b": bridge("t")}, Port={"p-t": port("t", **columns)}, Interface={"i-t": interface("t")}
    )
    found = seen.switch.ports()["t"]
    assert (found.is_dead, found.is_access(10)) == (dead, access)


@pytest.mark.parametrize(
    ("kind", "ids", "trunk"), [("vxlan", {}, True), ("patch", {}, True), ("", {}, False)]
)
def test_tunnels_and_patches_are_trunks(seen: Seen, kind: str, ids: dict[str, str], trunk: bool) -> None:
    seen.change(
        Bridge={"b": bridge("t")},
        Port={"p-t": port("t")},
        Interface={"i-t": interface("t", kind=kind, **ids)},
    )
    assert seen.switch.ports()["t"].is_trunk == trunk
    seen.change(Interface={"i-t": interface("t", kind=kind, iface_id="a guest")})
    assert not seen.switch.ports()["t"].is_trunk


@pytest.mark.parametrize(
    ("text", "zone"), [("7", 7), ("0", None), ("65536", None), ("x", None), ("-1", None)]
)
def test_a_recorded_zone_is_believed_only_if_it_is_one(seen: Seen, text: str, zone: int | None) -> None:
    ids = ["map", [["kilonova-zone", text]]]
    seen.change(
        Bridge={"b": bridge("t")},
        Port={"p-t": port("t", external_ids=ids)},
        Interface={"i-t": interface("t")},
    )
    assert seen.switch.ports()["t"].zone == zone


def test_our_own_ports_are_no_guests(seen: Seen) -> None:
    ids = ["map", [["kilonova-owner", "me"], ["kilonova-network", "net"]]]
    seen.change(
        Bridge={"b": bridge("d")},
        Port={"p-d": port("d", external_ids=ids)},
        Interface={"i-d": interface("d", iface_id="x")},
    )
    assert seen.switch.guest_ports() == {}
    assert (seen.switch.ports()["d"].owner, seen.switch.ports()["d"].network_id) == ("me", "net")
