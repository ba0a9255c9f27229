"""What administrators do to cells: add, change and remove them, map servers, and look whether all is well."""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from kilonova.cell_bus import read_transport
from kilonova.cell_parts import open_database
from kilonova.clock import Clock, SystemClock
from kilonova.controller import open_database as open_top
from kilonova.db import cell_mappings, hosts, instance_mappings, instances, quotas
from kilonova.db.cell_mappings import FIRST_CELL, FIRST_CELL_NAME, CellMapping
from kilonova.db.cells import PatientDatabase
from kilonova.db.engine import Database, DatabaseUnavailable, Tx, UniqueViolation
from kilonova.db.instance_mappings import GONE, MADE, PENDING
from kilonova.db.schema import bring_up, check, revision
from kilonova.errors import Conflict, Failed, Invalid, NotFound
from kilonova.model.instance import Instance
from kilonova.settings import Settings

T = TypeVar("T")

PATIENCE = 10.0  # seconds for a cell to answer
PAGE = 500
LIMITLESS = quotas.Limits({}, {})

_SECRET_FIELD = re.compile(r"(?i)([a-z_]*(?:password|passwd|secret|token)\s*=\s*)[^&\s#]*")


def masked(text: str) -> str:
    """A URL without its passwords: whatever stands between the user and the last ``@``, and in the query."""
    scheme, slashes, rest = text.partition("://")
    if slashes and "@" in rest:
        credentials, _, place = rest.rpartition("@")
        user, colon, _ = credentials.partition(":")
        shown = f"{user}:****" if colon else user if scheme.startswith("postgresql") else "****"
        text = f"{scheme}://{shown}@{place}"
    return _SECRET_FIELD.sub(r"\1****", text)


class CellShown(msgspec.Struct, frozen=True, kw_only=True):
    """``servers`` is None for a cell that does not answer; ``state`` says how it is."""

    name: str
    uuid: str
    database_connection: str
    transport_url: str
    disabled: bool
    hosts: int
    servers: int | None
    state: str


class Verdict(msgspec.Struct, frozen=True):
    code: int
    text: str


@dataclass
class CellsAdmin:
    settings: Settings
    clock: Clock
    top: Database

    @classmethod
    async def open(cls, settings: Settings) -> CellsAdmin:
        """Raises Failed where there is no database of controllers: an embedded cloud has one cell."""
        top = open_top(settings)
        try:
            await check(top)
        except BaseException:
            await top.close()
            raise
        return cls(settings, SystemClock(), top)

    async def close(self) -> None:
        await self.top.close()

    # ---- which there are ----

    async def all(self) -> list[CellMapping]:
        """The first cell, then the others."""
        first = CellMapping(
            uuid=FIRST_CELL,
            name=FIRST_CELL_NAME,
            database_connection=self.settings.text("connection", "database"),
            transport_url=self._own_bus(),
        )
        return [first, *await self.top.read(cell_mappings.list_all)]

    def _own_bus(self) -> str:
        servers = ",".join(
            str(each).removeprefix("nats://") for each in self.settings.listed("servers", "nats")
        )
        return f"nats://{servers}/{self.settings.text('subject_prefix', 'nats')}"

    async def found(self, word: str) -> CellMapping:
        """By name or uuid.  Raises NotFound."""
        for each in await self.all():
            if word in (each.name, each.uuid):
                return each
        raise NotFound(f"There is no cell '{word}'.")

    async def _other(self, word: str) -> CellMapping:
        """Raises Conflict for the first cell, which is the deployment itself."""
        mapping = await self.found(word)
        if mapping.uuid == FIRST_CELL:
            raise Conflict("The first cell is the top database itself: change [database] and [nats] for it.")
        return mapping

    async def shown(self, mapping: CellMapping) -> CellShown:
        counted = Counter(host.cell_uuid or FIRST_CELL for host in await self.top.read(hosts.list_all))
        servers, state = None, "up"
        try:
            if mapping.uuid == FIRST_CELL:
                servers = await self.top.read(instances.count)
            else:
                servers = await self._in_cell(mapping, instances.count)
        except (DatabaseUnavailable, Failed) as error:
            state = masked(str(error))
        return CellShown(
            name=mapping.name,
            uuid=mapping.uuid,
            database_connection=mapping.database_connection,
            transport_url=mapping.transport_url,
            disabled=mapping.disabled,
            hosts=counted[mapping.uuid],
            servers=servers,
            state=state,
        )

    async def _in_cell(self, mapping: CellMapping, fn: Callable[[Tx], T]) -> T:
        """Raises DatabaseUnavailable, or Failed for a database of another release."""
        db = open_database(mapping.database_connection, self.clock, threads=1)
        try:
            patient = PatientDatabase(db, mapping.name, self.clock, PATIENCE)
            await check(patient)
            return await patient.read(fn)
        finally:
            await db.close()

    # ---- changing them ----

    async def create(
        self, name: str, database_connection: str, transport_url: str, *, disabled: bool = False
    ) -> CellMapping:
        """Make the tables there and know the cell from now on.

        Raises Invalid, Conflict (a known name, or a database that is in use), DatabaseUnavailable, Failed.
        """
        self._check(name, database_connection, transport_url)
        made = CellMapping(
            uuid=str(uuid.uuid4()),
            name=name,
            database_connection=database_connection,
            transport_url=transport_url,
            disabled=disabled,
            created_at=self.clock.now(),
        )
        await self._check_unlike_others(made)
        await self._bring_up(made)
        try:
            await self.top.write(lambda tx: cell_mappings.insert(tx, made))
        except UniqueViolation as error:
            raise Conflict(f"There is a cell '{name}' already.") from error
        try:
            await self._check_not_top(made)
        except BaseException:
            await self.top.write(lambda tx: cell_mappings.remove(tx, made.uuid))
            raise
        return made

    def _check(self, name: str, database_connection: str, transport_url: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", name) or name == FIRST_CELL_NAME:
            raise Invalid(f"'{name}' is no name for a cell: letters, digits, '.', '_' and '-', not 'cell1'.")
        if not database_connection.startswith("postgresql"):
            raise Invalid("A cell's database is postgresql://user:password@host/name.")
        read_transport(self.settings, transport_url)

    async def _bring_up(self, mapping: CellMapping) -> None:
        db = open_database(mapping.database_connection, self.clock, threads=1)
        try:
            patient = PatientDatabase(db, mapping.name, self.clock, PATIENCE)
            await revision(patient)  # writes are waited for without end
            await bring_up(db)
        finally:
            await db.close()

    async def _check_unlike_others(self, mapping: CellMapping) -> None:
        """Two cells on one database, or one bus, would have each other's servers and hosts.

        Raises Conflict.
        """
        for other in await self.all():
            if other.uuid == mapping.uuid:
                continue
            if other.database_connection == mapping.database_connection:
                raise Conflict(f"The cell '{other.name}' has that database already.")
            prefix = mapping.transport_url.rpartition("/")[2]  # of subjects, and of hosts' settings
            if other.transport_url.rpartition("/")[2] == prefix:
                raise Conflict(f"The cell '{other.name}' has the prefix '{prefix}' on its bus already.")

    async def _check_not_top(self, mapping: CellMapping) -> None:
        """Raises Conflict for the top database by another name: our own mapping is in it."""
        if await self._in_cell(mapping, lambda tx: cell_mappings.find(tx, mapping.uuid)) is not None:
            raise Conflict("That is the top database itself, which is the first cell's.")

    async def update(
        self,
        word: str,
        *,
        name: str | None = None,
        database_connection: str | None = None,
        transport_url: str | None = None,
        disabled: bool | None = None,
    ) -> CellMapping:
        """Raises NotFound, Invalid, Conflict, DatabaseUnavailable or Failed (for the new database)."""
        old = await self._other(word)
        changed = replace(
            old,
            name=name or old.name,
            database_connection=database_connection or old.database_connection,
            transport_url=transport_url or old.transport_url,
            disabled=old.disabled if disabled is None else disabled,
            updated_at=self.clock.now(),
        )
        self._check(changed.name, changed.database_connection, changed.transport_url)
        if database_connection or transport_url:
            await self._check_unlike_others(changed)
        if database_connection:
            await self._check_not_top(changed)
        try:
            await self.top.write(lambda tx: cell_mappings.update_to(tx, changed))
        except UniqueViolation as error:
            raise Conflict(f"There is a cell '{changed.name}' already.") from error
        return changed

    async def delete(self, word: str, *, force: bool = False) -> None:
        """Raises Conflict while it has servers, or (without ``force``) hosts."""
        mapping = await self._other(word)

        def write(tx: Tx) -> None:
            if count := cell_mappings.servers_in(tx, mapping.uuid):
                raise Conflict(f"{count} servers are in the cell '{mapping.name}': delete them first.")
            there = [host for host in hosts.list_all(tx) if host.cell_uuid == mapping.uuid]
            if there and not force:
                names = ", ".join(host.host for host in there[:5])
                raise Conflict(
                    f"{len(there)} hosts are in the cell '{mapping.name}' ({names}): stop their agents, and "
                    "delete their services, or use --force."
                )
            for host in there:
                hosts.remove(tx, host.host)
            instance_mappings.drop_cell(tx, mapping.uuid)
            cell_mappings.remove(tx, mapping.uuid)

        await self.top.write(write)

    # ---- what is in them ----

    async def hosts(self, word: str | None = None) -> list[tuple[str, str, str]]:
        """(cell, host, node) of all hosts, or of a cell's."""
        names = {each.uuid: each.name for each in await self.all()}
        only = None if word is None else (await self.found(word)).uuid
        result = []
        for host in await self.top.read(hosts.list_all):
            cell = host.cell_uuid or FIRST_CELL
            if only in (None, cell):
                result.append((names.get(cell, cell), host.host, host.hypervisor_hostname))
        return result

    async def map_instances(self, word: str, most: int | None = None) -> tuple[int, int]:
        """Map what is not mapped of a cell's servers; how many were, and how many are left."""
        mapping = await self._other(word)
        known = await self.top.read(lambda tx: instance_mappings.uuids_in(tx, mapping.uuid))
        strays = await self._in_cell(mapping, lambda tx: instances.uuids_but(tx, known))
        chosen = strays if most is None else strays[:most]
        for start in range(0, len(chosen), PAGE):
            part = chosen[start : start + PAGE]
            found = await self._in_cell(mapping, lambda tx, part=part: _shown(tx, part))  # type: ignore[misc]
            await self.top.write(lambda tx, found=found: _map(tx, mapping.uuid, found))  # type: ignore[misc]
        return len(chosen), len(strays) - len(chosen)

    async def verify(self, server: str) -> Verdict:
        """Whether a server is where its mapping says."""
        mapped = await self.top.read(lambda tx: instance_mappings.show(tx, server))
        if mapped is None:
            if await self.top.read(lambda tx: instances.show_any(tx, server)) is not None:
                return Verdict(0, f"{server} is in the first cell, {FIRST_CELL_NAME}.")
            return Verdict(1, f"Nobody knows {server}.")
        if mapped.state == PENDING:
            return Verdict(2, f"{server} is not made yet, or never will be: look again in a minute.")
        try:
            cell = await self.found(mapped.cell_uuid)
            there = await self._in_cell(cell, lambda tx: instances.show_any(tx, server))
        except NotFound:
            return Verdict(3, f"{server} is mapped to {mapped.cell_uuid}, which is no cell any more.")
        except DatabaseUnavailable as error:
            return Verdict(4, f"{server} is mapped to a cell that does not answer: {masked(str(error))}")
        if there is None:
            return Verdict(3, f"{server} is mapped to the cell '{cell.name}' and is not there.")
        return Verdict(0, f"{server} is in the cell '{cell.name}'.")


def _shown(tx: Tx, uuids: list[str]) -> list[Instance]:
    found = (instances.show_any(tx, each) for each in uuids)
    return [each for each in found if each is not None]


def _map(tx: Tx, cell_uuid: str, found: list[Instance]) -> None:
    for instance in found:
        if instance_mappings.found_in(tx, instance, cell_uuid):
            continue
        gone = instance.deleted_at is not None
        state = GONE if gone else MADE
        instance_mappings.insert(tx, instance_mappings.of_instance(instance, cell_uuid, state, None))
        if not gone:
            flavor = instance.flavor
            amounts = {"instances": 1, "cores": flavor.vcpus, "ram": flavor.memory_mb}
            quotas.reserve(tx, instance.project_id, instance.user_id, LIMITLESS, **amounts)
