"""What the switch's database has of a port, asked by ourselves.

os-vif ignores many failures: with the database gone, unplug returns as if all were well, and the port stays.
"""

from __future__ import annotations

from typing import Any

from kilonova.clock import SystemClock
from kilonova.errors import HostFault, TryAgain, Unreachable
from kilonova.l2agent.openflow import answers
from kilonova.l2agent.ovsdb import Operation, Ovsdb, as_optional
from kilonova.l2agent.switch import DEAD_VLAN
from kilonova.model.port import Vif


def names_of(vif: Vif) -> tuple[str, str]:
    """The names that a port can have on the switch: the tap's, or with hybrid plug the veth's."""
    return vif.devname, f"qvo{vif.port_id[:11]}"


class SwitchDatabase:
    """Short connections to the database, for looking; ``limit``: seconds in which an answer has to come."""

    def __init__(self, connection: str, limit: float) -> None:
        """Raises Invalid for what is no connection."""
        self._connection = connection
        self._limit = limit
        self._new(limit)

    async def has_port(self, vif: Vif) -> bool:
        """Raises Unreachable if the database does not answer."""
        async with self._new(self._limit).briefly() as ovsdb:
            results = await ovsdb.transact(*(_named("Port", name, "name") for name in names_of(vif)))
        return any(result["rows"] for result in results)

    async def isolate_idle(self, vif: Vif) -> None:
        """Have a port dead that has no device: it is from before the host was booted, and still in a VLAN.

        os-vif isolates only ports that it makes.  One with a device is in use, and left alone.
        """
        async with self._new(self._limit).briefly() as ovsdb:
            found = await ovsdb.transact(*(_named("Interface", name, "ofport") for name in names_of(vif)))
            idle = [
                name
                for name, result in zip(names_of(vif), found, strict=True)
                for row in result["rows"]
                if (as_optional(row["ofport"]) or -1) < 0
            ]
            if idle:
                await ovsdb.transact(*(_dead(name) for name in idle))

    async def check_switch(self, bridge: str) -> None:
        """Raises Unreachable unless the database and, if it has the bridge, the switch itself answer."""
        async with self._new(self._limit).briefly() as ovsdb:
            found = await ovsdb.transact(_named("Bridge", bridge, "name"))
        if found[0]["rows"]:
            await answers(ovsdb.directory / f"{bridge}.mgmt", self._limit)

    async def device_is_taken(self, name: str) -> None:
        """Return when the switch has opened the device of a port.

        Raises HostFault with the switch's reason if it does not, Unreachable.
        """
        waits = [_until_not(name, nothing) for nothing in (["set", []], -1)]
        async with self._new(2 * self._limit).briefly() as ovsdb:
            try:
                await ovsdb.transact(*({**wait, "timeout": int(self._limit * 1000)} for wait in waits))
            except Unreachable:
                raise
            except TryAgain:
                found = await ovsdb.transact(_named("Interface", name, "error"))
                said = [as_optional(row["error"]) for row in found[0]["rows"]]
                reason = (said and said[0]) or "it does not say why"
                raise HostFault(f"Open vSwitch did not take the device {name}: {reason}.") from None

    def _new(self, limit: float) -> Ovsdb:
        return Ovsdb(self._connection, SystemClock(), timeout=limit)


def _named(table: str, name: str, column: str) -> Operation:
    return {"op": "select", "table": table, "where": [["name", "==", name]], "columns": [column]}


def _dead(name: str) -> Operation:
    row = {"tag": DEAD_VLAN, "vlan_mode": "trunk", "trunks": DEAD_VLAN}
    return {"op": "update", "table": "Port", "where": [["name", "==", name]], "row": row}


def _until_not(name: str, ofport: Any) -> Operation:
    """Wait until an interface has another number than this."""
    where = [["name", "==", name]]
    return {
        **{"op": "wait", "table": "Interface", "where": where},
        **{"columns": ["ofport"], "until": "!=", "rows": [{"ofport": ofport}]},
    }
