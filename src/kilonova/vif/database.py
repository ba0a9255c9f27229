"""What the switch's database has of a port, asked by ourselves.

os-vif ignores many failures: with the database gone, unplug returns as if all were well, and the port stays.
"""

from __future__ import annotations

from kilonova.clock import SystemClock
from kilonova.l2agent.openflow import answers
from kilonova.l2agent.ovsdb import Operation, Ovsdb
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
        self._new()

    async def has_port(self, vif: Vif) -> bool:
        """Raises Unreachable if the database does not answer."""
        async with self._new().briefly() as ovsdb:
            results = await ovsdb.transact(*(_named("Port", name) for name in names_of(vif)))
        return any(result["rows"] for result in results)

    async def check_switch(self, bridge: str) -> None:
        """Raises Unreachable unless the database and, if it has the bridge, the switch itself answer."""
        async with self._new().briefly() as ovsdb:
            found = await ovsdb.transact(_named("Bridge", bridge))
        if found[0]["rows"]:
            await answers(ovsdb.directory / f"{bridge}.mgmt", self._limit)

    def _new(self) -> Ovsdb:
        return Ovsdb(self._connection, SystemClock(), timeout=self._limit)


def _named(table: str, name: str) -> Operation:
    return {"op": "select", "table": table, "where": [["name", "==", name]], "columns": ["name"]}
