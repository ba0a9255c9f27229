"""How a resize ends: what confirming and reverting share, and what becomes of one whose server is deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from kilonova.db import instances, migration_contexts, migrations
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Invalid, Unreachable
from kilonova.journal.model import Operation, Run
from kilonova.model.context import RequestContext
from kilonova.model.migration import LIVE, MIGRATION, RESIZE, Migration, MigrationContext, Status
from kilonova.model.states import Vm
from kilonova.operations import guards
from kilonova.operations.begin import found
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import is_down, leave
from kilonova.operations.moving import MoveParams, mover_of
from kilonova.operations.steps import command

NOT_RESIZED = "Instance has not been resized."


async def begin_end(
    cloud: Cloud, context: RequestContext, uuid: str, guard_name: str, operation: Operation, status: str
) -> None:
    """Begin to end a resize that is finished; of several at a time one begins.

    Raises NotFound, Conflict, or Invalid if there is none.
    """

    def write(tx: Tx) -> None:
        instance = found(tx, uuid)
        guard = guards.check(guard_name, instance, context)
        migration = migrations.in_status(tx, uuid, None, (Status.FINISHED,))
        if migration is None:
            raise Invalid(NOT_RESIZED)
        changes: dict[str, Any] = {"task_state": guard.sets, "progress": 0}
        if not instances.update(
            tx, uuid, expect_task=(instance.task_state,), expect_vm=(Vm.RESIZED,), **changes
        ):
            raise Conflict(f"Instance {uuid} is being changed by another request; look again and repeat.")
        if not migrations.update(tx, migration.uuid, expect=(Status.FINISHED,), status=status):
            raise Invalid(NOT_RESIZED)
        known = {"instance": replace(instance, **changes)}
        params = MoveParams(migration=migration.uuid)
        cloud.journal.submit(tx, context, operation, uuid, guard.action, params, known)

    await cloud.db.write(write)


async def drop_parked(
    run: Run, migration: Migration, context: MigrationContext, host: str | None
) -> Callable[[Tx], None] | None:
    """Have the files removed that were put aside at the source, and what it gave released.

    ``host`` is where the server is; it can reach files on shared storage as well.  A source that is down is
    left to itself: what this gives is to be made in the next commit.
    """
    cloud: Cloud = run.cloud
    source = str(migration.source_compute)
    reachable = host if host is not None and context.shared else source
    try:
        await mover_of(run, reachable).drop_parked(command(run, "drop_parked"), run.instance_uuid)
    except Unreachable:
        if reachable == host or not await is_down(run, reachable):
            raise
        return lambda tx: leave(
            tx, run, source, context.old_vifs, keep_files=context.shared, migration=migration.uuid
        )
    await cloud.claims.drop_old(migration.uuid)
    return None


async def forget_moves(run: Run, host: str | None) -> Callable[[Tx], None]:
    """A server that is deleted is moved no more: what its moves still hold is given back.

    A resize that waits to be confirmed is confirmed by it (MG-XC-11).  What this gives is to be made in the
    next commit.
    """
    cloud: Cloud = run.cloud
    uuid = run.instance_uuid

    def look(tx: Tx) -> list[tuple[Migration, MigrationContext]]:
        pairs = (
            (migrations.show(tx, each), migration_contexts.show(tx, each))
            for each in migration_contexts.of_instance(tx, uuid)
        )
        return [(migration, context) for migration, context in pairs if migration and context]

    writes: list[Callable[[Tx], None]] = []
    for migration, context in await cloud.db.read(look):
        if migration.migration_type in (MIGRATION, RESIZE):
            left = await drop_parked(run, migration, context, host)
            if left is not None:
                writes.append(left)
            there = migration.dest_compute
            if there is not None and there != host:  # what was abandoned, and may have come there
                writes.append(_left_to(run, there, context))
        else:
            await cloud.claims.drop_old(migration.uuid)
        if migration.migration_type == LIVE:  # the same, of either side
            for name in {migration.source_compute, migration.dest_compute} - {host, None}:
                writes.append(_left_to(run, str(name), context))
        writes.append(_ending(migration))

    def write(tx: Tx) -> None:
        for each in writes:
            each(tx)

    return write


def _left_to(run: Run, host: str, context: MigrationContext) -> Callable[[Tx], None]:
    return lambda tx: leave(tx, run, host, context.new_vifs or context.old_vifs)


def _ending(migration: Migration) -> Callable[[Tx], None]:
    waits = migration.status in (Status.FINISHED, Status.CONFIRMING)
    status = Status.CONFIRMED if waits else Status.ERROR

    def write(tx: Tx) -> None:
        migrations.update(tx, migration.uuid, status=status)
        migration_contexts.drop(tx, migration.uuid)

    return write
