"""What Open vSwitch has on the integration bridge: a mirror of three tables, and the changes we make.

A port of a guest is an interface with the external id ``iface-id`` (os-vif writes it).  A port is *dead*
when it can exchange nothing with anybody: tag 4095 as a trunk that carries only 4095.  The tag alone would
leave two unwired guests in one VLAN.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from kilonova.errors import TryAgain
from kilonova.l2agent.ovsdb import Operation, Ovsdb, Row, Updates, as_map, as_optional, as_set

DEAD_VLAN = 4095
TABLES = {
    "Open_vSwitch": ["cur_cfg", "bridges"],
    "Bridge": ["name", "ports", "datapath_type", "fail_mode"],
    "Port": ["name", "interfaces", "tag", "vlan_mode", "trunks", "protected", "external_ids"],
    "Interface": ["name", "type", "ofport", "options", "external_ids", "error"],
}
OWNER = "kilonova-owner"  # external ids of ports that the agent made itself
NETWORK = "kilonova-network"
ZONE = "kilonova-zone"  # on a guest's port: its zone of connection tracking, kept over restarts of the agent
_TRUNK_TYPES = frozenset({"vxlan", "geneve", "gre", "patch"})


class SwitchPort(msgspec.Struct, frozen=True, kw_only=True):
    """One port of the bridge, with its one interface."""

    row: str  # the uuid of its Port row
    name: str
    type: str
    ofport: int | None  # None: the switch has no such device (yet)
    iface_id: str | None
    owner: str | None
    network_id: str | None
    zone: int | None
    tag: int | None
    vlan_mode: str | None
    trunks: tuple[int, ...]
    protected: bool = False
    options: dict[str, str] = {}  # of a tunnel

    @property
    def is_trunk(self) -> bool:
        """A tunnel to another host, or a patch to another bridge: frames carry their VLAN."""
        return self.iface_id is None and self.type in _TRUNK_TYPES

    @property
    def is_dead(self) -> bool:
        return self.tag == DEAD_VLAN and self.vlan_mode == "trunk" and self.trunks == (DEAD_VLAN,)

    def is_access(self, vlan: int) -> bool:
        return self.tag == vlan and self.vlan_mode == "access" and not self.trunks


class Switch:
    """The integration bridge.  Implements ovsdb.Listener.

    ``on_change(names)`` is called in the event loop with the names of ports that came, changed or went, and
    ``on_content()`` when the database is there (again).
    """

    def __init__(
        self,
        ovsdb: Ovsdb,
        bridge: str,
        on_change: Callable[[set[str]], None],
        on_content: Callable[[], None] = lambda: None,
    ) -> None:
        self.ovsdb = ovsdb
        self.bridge = bridge
        self._on_change = on_change
        self._on_content = on_content
        self._tables: dict[str, dict[str, Row]] = {name: {} for name in TABLES}
        self._ports: dict[str, SwitchPort] = {}
        self._changed = asyncio.Event()

    # ---- the mirror ----

    def content(self, updates: Updates) -> None:
        self._tables = {name: {} for name in TABLES}
        self.changed(updates)
        self._on_content()

    def changed(self, updates: Updates) -> None:
        for table, rows in updates.items():
            mirror = self._tables[table]
            for uuid, change in rows.items():
                if "new" in change:
                    mirror[uuid] = change["new"]
                else:
                    mirror.pop(uuid, None)
        before, self._ports = self._ports, self._read_ports()
        names = before.keys() ^ self._ports.keys()
        names |= {name for name, port in self._ports.items() if before.get(name, port) != port}
        event, self._changed = self._changed, asyncio.Event()
        event.set()
        if names or updates.get("Bridge"):
            self._on_change(set(names))

    def lost(self) -> None:
        """The mirror keeps what was last seen."""

    def _bridge_row(self) -> tuple[str, Row] | None:
        for uuid, row in self._tables["Bridge"].items():
            if row["name"] == self.bridge:
                return uuid, row
        return None

    def _read_ports(self) -> dict[str, SwitchPort]:
        found = self._bridge_row()
        ports: dict[str, SwitchPort] = {}
        for _, uuid in as_set(found[1]["ports"]) if found else ():
            row = self._tables["Port"].get(uuid)
            if row is None:
                continue
            interfaces = [self._tables["Interface"].get(uuid) for _, uuid in as_set(row["interfaces"])]
            if len(interfaces) == 1 and interfaces[0] is not None:  # a bond is not ours
                ports[row["name"]] = _port(uuid, row, interfaces[0])
        return ports

    @property
    def exists(self) -> bool:
        return self._bridge_row() is not None

    @property
    def datapath_type(self) -> str:
        found = self._bridge_row()
        return str(found[1]["datapath_type"]) if found else ""

    def ports(self) -> dict[str, SwitchPort]:
        """All ports by name."""
        return self._ports

    def guest_ports(self) -> dict[str, SwitchPort]:
        """The ports of guests by the port id of the network service.

        Of two with one id (a stale row beside the live one) that with a device counts.
        """
        found: dict[str, SwitchPort] = {}
        for port in self._ports.values():
            if port.iface_id is None or port.owner is not None:
                continue
            other = found.get(port.iface_id)
            if other is None or (other.ofport is None and port.ofport is not None):
                found[port.iface_id] = port
        return found

    # ---- changes ----

    async def ensure(self, datapath_type: str | None) -> None:
        """Create the bridge, or give it the datapath; "secure": without flows it passes nothing.

        ``datapath_type`` None keeps what an existing bridge has.
        """
        found = self._bridge_row()
        columns: dict[str, Any] = {"fail_mode": "secure"}
        if datapath_type is not None:
            columns["datapath_type"] = datapath_type
        if found is not None:
            stale = {key: value for key, value in columns.items() if as_optional(found[1][key]) != value}
            if stale:
                where = [["_uuid", "==", ["uuid", found[0]]]]
                await self._transact({"op": "update", "table": "Bridge", "where": where, "row": stale})
                await self.applied()
            return
        new_port = {"name": self.bridge, "interfaces": ["named-uuid", "i"]}
        new_bridge = {"name": self.bridge, "ports": ["named-uuid", "p"], **columns}
        await self._transact(
            {
                "op": "insert",
                "table": "Interface",
                "uuid-name": "i",
                "row": {"name": self.bridge, "type": "internal"},
            },
            {"op": "insert", "table": "Port", "uuid-name": "p", "row": new_port},
            {"op": "insert", "table": "Bridge", "uuid-name": "b", "row": new_bridge},
            {
                "op": "mutate",
                "table": "Open_vSwitch",
                "where": [],
                "mutations": [["bridges", "insert", ["set", [["named-uuid", "b"]]]]],
            },
        )
        await self.applied()

    async def wire(self, ports: list[tuple[SwitchPort, int, int]]) -> None:
        """Put ports into their VLANs; of each (port, vlan, zone of connection tracking).

        The trunk of the dead VLAN has to be taken away as well, or the port stays dead.
        """
        operations: list[Operation] = []
        for port, vlan, zone in ports:
            row = {"tag": vlan, "vlan_mode": "access", "trunks": ["set", []]}
            operations += [_update_port(port, row), *_set_external_ids(port, {ZONE: str(zone)})]
        await self._transact(*operations)

    async def kill(self, ports: list[SwitchPort]) -> None:
        """Put ports into the dead VLAN."""
        row = {"tag": DEAD_VLAN, "vlan_mode": "trunk", "trunks": DEAD_VLAN}
        await self._transact(*(_update_port(port, row) for port in ports))
        await self.applied()

    async def revive(self, ports: list[SwitchPort]) -> None:
        """Take ports out of the dead VLAN again; they carry every VLAN then."""
        row = {"tag": ["set", []], "vlan_mode": ["set", []], "trunks": ["set", []]}
        await self._transact(*(_update_port(port, row) for port in ports))
        await self.applied()

    async def add_internal_port(
        self, name: str, *, vlan: int, mac: str, mtu: int, external_ids: dict[str, str]
    ) -> None:
        """A port whose device the switch makes itself.

        It is *protected*: it exchanges nothing with other protected ports, which all tunnels are to be; so
        each host's DHCP server answers its own guests only.
        """
        columns = {"tag": vlan, "protected": True, "external_ids": _map(external_ids)}
        await self._have(name, "internal", columns, {"mac": mac, "mtu_request": mtu})

    async def have_tunnel(
        self, name: str, *, options: dict[str, str], vlans: set[int], external_ids: dict[str, str]
    ) -> None:
        """A port to the switch of another host, for frames with the tags of these networks.

        Protected, as `add_internal_port` says: so there are no loops either, however many hosts there are.
        """
        columns = {
            "vlan_mode": "trunk",
            "trunks": ["set", sorted(vlans)],
            "protected": True,
            "external_ids": _map(external_ids),
        }
        await self._have(name, "vxlan", columns, {"options": _map(options)})

    async def _have(self, name: str, kind: str, columns: Row, device: Row) -> None:
        existing = self._ports.get(name)
        if existing is not None:
            where = [["name", "==", name]]
            await self._transact(
                _update_port(existing, columns),
                {"op": "update", "table": "Interface", "where": where, "row": device},
            )
            return
        new_port = {"name": name, "interfaces": ["named-uuid", "i"], **columns}
        new_device = {"name": name, "type": kind, **device}
        await self._transact(
            {"op": "insert", "table": "Interface", "uuid-name": "i", "row": new_device},
            {"op": "insert", "table": "Port", "uuid-name": "p", "row": new_port},
            {
                "op": "mutate",
                "table": "Bridge",
                "where": [["name", "==", self.bridge]],
                "mutations": [["ports", "insert", ["set", [["named-uuid", "p"]]]]],
            },
        )

    async def remove_port(self, name: str) -> None:
        port = self._ports.get(name)
        if port is None:
            return
        await self._transact(
            {
                "op": "mutate",
                "table": "Bridge",
                "where": [["name", "==", self.bridge]],
                "mutations": [["ports", "delete", ["set", [["uuid", port.row]]]]],
            }
        )
        await self.applied()

    async def applied(self, timeout: float = 10.0) -> None:
        """Return when the switch has done all that the database says now.

        This is how ovs-vsctl waits: raise ``next_cfg``, and ``cur_cfg`` follows when it is done.  Raises
        TryAgain if the switch does not; is ovs-vswitchd running?
        """
        results = await self._transact(
            {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]]},
            {"op": "select", "table": "Open_vSwitch", "where": [], "columns": ["next_cfg"]},
        )
        wanted = int(results[1]["rows"][0]["next_cfg"])
        try:
            async with asyncio.timeout(timeout):
                while self._current_config() < wanted:
                    await self._changed.wait()
        except TimeoutError:
            raise TryAgain(
                f"Open vSwitch did not take up a change within {timeout:g} seconds; is ovs-vswitchd running?"
            ) from None

    def _current_config(self) -> int:
        return max((int(row["cur_cfg"]) for row in self._tables["Open_vSwitch"].values()), default=0)

    async def _transact(self, *operations: Operation) -> list[dict[str, Any]]:
        return await self.ovsdb.transact(*operations) if operations else []


def _port(uuid: str, row: Row, interface: Row) -> SwitchPort:
    ids = as_map(row["external_ids"])
    zone = ids.get(ZONE, "")
    ofport = as_optional(interface["ofport"])
    return SwitchPort(
        row=uuid,
        name=row["name"],
        type=interface["type"],
        ofport=ofport if ofport is not None and ofport > 0 else None,
        iface_id=as_map(interface["external_ids"]).get("iface-id"),
        owner=ids.get(OWNER),
        network_id=ids.get(NETWORK),
        zone=int(zone) if zone.isdigit() and 0 < int(zone) < 65536 else None,
        tag=as_optional(row["tag"]),
        vlan_mode=as_optional(row["vlan_mode"]),
        trunks=tuple(as_set(row["trunks"])),
        protected=bool(row.get("protected")),
        options=as_map(interface.get("options", ["map", []])),
    )


def _map(values: dict[str, str]) -> list[Any]:
    return ["map", [[key, value] for key, value in values.items()]]


def _update_port(port: SwitchPort, row: Row) -> Operation:
    return {"op": "update", "table": "Port", "where": [["_uuid", "==", ["uuid", port.row]]], "row": row}


def _set_external_ids(port: SwitchPort, ids: dict[str, str]) -> list[Operation]:
    """OVSDB inserts only keys that are missing, so the old ones go first."""
    where = [["_uuid", "==", ["uuid", port.row]]]
    pairs = [[key, value] for key, value in ids.items()]
    return [
        {
            "op": "mutate",
            "table": "Port",
            "where": where,
            "mutations": [
                ["external_ids", "delete", ["set", list(ids)]],
                ["external_ids", "insert", ["map", pairs]],
            ],
        }
    ]
