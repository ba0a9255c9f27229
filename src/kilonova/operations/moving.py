"""What all moves of a server between hosts share: the record of the move, what both hosts hold for it, its
ports, and who has to clear up later.

While a move goes on the server's own consumer in placement is its new place, and the migration's uuid holds
the old one (MG-RSZ-1, MG-LM-1): whichever side is given up is one release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from kilonova.db import hosts, instances, migration_contexts, migrations
from kilonova.db.engine import Tx
from kilonova.errors import Failed
from kilonova.journal.model import Done, Operation, Run
from kilonova.model.context import RequestContext
from kilonova.model.flavor import Flavor
from kilonova.model.instance import Instance
from kilonova.model.migration import Migration, MigrationContext
from kilonova.model.port import Vif
from kilonova.operations.begin import taken
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import leave, owing
from kilonova.operations.placing import place, request_of
from kilonova.operations.steps import guest_for, instance_of
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.mover import Mover
from kilonova.rpc.moves import Progress
from kilonova.scheduler.request import Selection

LEFT = "it is the host that the server leaves"


class MoveParams(msgspec.Struct, frozen=True, kw_only=True):
    """``migration`` is the uuid of the record.  A ``host`` that was named is validated by the scheduler,
    unless the move is ``forced`` to it.  ``across``: a host of another cell will do as well."""

    migration: str
    host: str | None = None
    node: str | None = None
    forced: bool = False
    across: bool = False


@dataclass(frozen=True, kw_only=True)
class Move:
    """A move that is asked for: of which kind and where its record begins (`model.migration`).

    ``also(tx, instance)`` runs in the write that begins it, and may refuse by raising.
    """

    guard: str
    operation: Operation
    kind: str
    status: str
    new_flavor: Flavor | None = None
    also: Callable[[Tx, Instance], None] = lambda tx, instance: None


async def begin_move(
    cloud: Cloud, context: RequestContext, uuid: str, move: Move, params: MoveParams
) -> None:
    """As `begin.begin`, with the record of the move and what it must remember in the same write.

    Raises NotFound, Conflict.
    """

    def write(tx: Tx) -> None:
        instance, guard = taken(tx, context, uuid, move.guard, also=move.also)
        migration = _record(cloud, context, instance, move, params.migration)
        migrations.insert(tx, migration)
        remembered = MigrationContext(
            old_vm_state=instance.vm_state,
            old_flavor=instance.flavor,
            new_flavor=move.new_flavor,
            old_vifs=instance.vifs,
            old_volumes=instance.volumes,
        )
        migration_contexts.put(tx, migration.uuid, uuid, remembered)
        known = {"instance": instance}
        cloud.journal.submit(tx, context, move.operation, uuid, guard.action, params, known)

    await cloud.db.write(write)


def _record(cloud: Cloud, context: RequestContext, instance: Instance, move: Move, uuid: str) -> Migration:
    return Migration(
        uuid=uuid,
        instance_uuid=instance.uuid,
        project_id=context.project_id or instance.project_id,
        user_id=context.user_id or instance.user_id,
        migration_type=move.kind,
        status=move.status,
        created_at=cloud.clock.now(),
        source_compute=instance.host,
        source_node=instance.node,
        old_flavor_id=instance.flavor.id,
        new_flavor_id=(move.new_flavor or instance.flavor).id,
    )


# ---- what steps read ----


async def migration_of(run: Run) -> Migration:
    """The record of the move, read once a run; `note` keeps it current."""
    known: Migration | None = run.known.get("migration")
    if known is None:
        known = await run.cloud.db.read(lambda tx: migrations.show(tx, run.params.migration))
        if known is None:
            raise Failed(f"Migration {run.params.migration} has vanished from the database.")
        run.known["migration"] = known
    return known


async def context_of(run: Run) -> MigrationContext:
    """What the move remembers of the server, read once a run; `remember` keeps it current."""
    known: MigrationContext | None = run.known.get("context")
    if known is None:
        known = await run.cloud.db.read(lambda tx: migration_contexts.show(tx, run.params.migration))
        if known is None:
            raise Failed(f"What migration {run.params.migration} remembers has vanished from the database.")
        run.known["context"] = known
    return known


def note(tx: Tx, run: Run, **changes: Any) -> None:
    """Change the record of the move."""
    migrations.update(tx, run.params.migration, **changes)
    if "migration" in run.known:
        run.known["migration"] = replace(run.known["migration"], **changes)


def remember(tx: Tx, run: Run, context: MigrationContext) -> None:
    migration_contexts.put(tx, run.params.migration, run.instance_uuid, context)
    run.known["context"] = context


def mover_of(run: Run, host: str) -> Mover:
    cloud: Cloud = run.cloud
    return cloud.hosts.mover(host)


async def old_guest(run: Run) -> GuestSpec:
    """The guest as it is at the host that it leaves."""
    context = await context_of(run)
    instance = replace(
        await instance_of(run),
        flavor=context.old_flavor,
        vifs=context.old_vifs,
        volumes=context.old_volumes,
    )
    return await nameless(run, await guest_for(run, instance, holder=run.params.migration))


async def new_guest(run: Run, vifs: tuple[Vif, ...]) -> GuestSpec:
    """The guest as it is to be at the host that it goes to, with its ports as they are bound there."""
    context = await context_of(run)
    instance = replace(
        await instance_of(run),
        flavor=context.new_flavor or context.old_flavor,
        vifs=vifs,
        volumes=context.new_volumes,
    )
    return await nameless(run, await guest_for(run, instance, holder=instance.uuid))


async def nameless(run: Run, guest: GuestSpec) -> GuestSpec:
    """Names are made of numbers, which each cell counts by itself: a guest that changes its cell is called by
    its uuid, until it is next started."""
    return replace(guest, domain="") if (await migration_of(run)).cross_cell_move else guest


def note_progress(tx: Tx, run: Run, seen: Progress) -> None:
    """Show how far what is sent has come, in the record (bytes) and with the server (percent)."""
    names = [f"{kind}_{name}" for kind in ("memory", "disk") for name in ("total", "processed", "remaining")]
    note(tx, run, **{name: getattr(seen, name) for name in names})
    instances.update(tx, run.instance_uuid, expect_task=instances.ANY, progress=seen.percent)


# ---- what both hosts hold ----


async def place_elsewhere(
    run: Run, *, instance: Instance | None = None, ignored: dict[str, str] | None = None, **more: Any
) -> Selection:
    """Set aside what the server holds, and book another host for it.

    ``ignored``: hosts that will not do, with the reason; by default the one that it leaves.  ``more`` are
    fields of the request.  May be repeated.  Raises NoValidHost, with everything as it was.
    """
    cloud: Cloud = run.cloud
    instance = instance or await instance_of(run)
    await give_back_place(run)  # what a former try may have booked
    await cloud.claims.set_aside(instance.uuid, run.params.migration)
    params: MoveParams = run.params
    uncleared = await owing(cloud, instance.uuid)
    target = {"forced_host": params.host, "forced_node": params.node} if params.forced else {}
    if params.host and not params.forced:
        target = {"requested_host": params.host, "requested_node": params.node}
    request = request_of(
        cloud,
        instance,
        tried=run.action.outputs.get("tried", {}),
        ignored=uncleared | ({str(instance.host): LEFT} if ignored is None else ignored),
        **{**target, **more},
    )
    return await place(cloud, instance, request)


async def placed(run: Run, chosen: Selection, **changes: Any) -> Done:
    """The end of a step that has found another host: it stands in the record, with ``changes`` of that."""
    cloud: Cloud = run.cloud
    known = await cloud.top.read(lambda tx: hosts.show(tx, chosen.host))
    there = {
        "dest_compute": chosen.host,
        "dest_node": chosen.node,
        "dest_host": None if known is None else known.host_ip,
        "cross_cell_move": known is not None and known.cell_uuid != cloud.cell_uuid,
        **changes,
    }
    output = {
        "host": chosen.host,
        "node": chosen.node,
        "zone": chosen.availability_zone,
        "rejected": chosen.reasons,
        "removed": chosen.removed,
    }
    return Done(output=output, write=lambda tx: note(tx, run, **there), host=chosen.host)


async def unplaced(run: Run, **changes: Any) -> Done:
    """The undo of that."""
    await give_back_place(run)
    nowhere = {"dest_compute": None, "dest_node": None, "dest_host": None, "cross_cell_move": False}
    return Done(write=lambda tx: note(tx, run, **nowhere, **changes))


async def give_back_place(run: Run) -> None:
    """The server holds again what it held before the move.  May be repeated."""
    cloud: Cloud = run.cloud
    await cloud.claims.take_back(run.instance_uuid, run.params.migration)


# ---- who clears up later ----


def leave_to(tx: Tx, run: Run, host: str, vifs: tuple[Vif, ...], *, keep_files: bool) -> None:
    """The host cannot be asked: it is rid of what it has of the server when it is back."""
    leave(tx, run, host, vifs, keep_files=keep_files, migration=run.params.migration)
