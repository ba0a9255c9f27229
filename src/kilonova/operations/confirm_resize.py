"""Confirming a resize or a cold migration: what the server had before is given up."""

from __future__ import annotations

import structlog

from kilonova.clock import SECOND
from kilonova.db import instances, migration_contexts, migrations
from kilonova.db.engine import Tx
from kilonova.errors import Failed, KilonovaError
from kilonova.journal.model import Done, Kind, Operation, Run, Step, StoredError
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.migration import Migration, Status
from kilonova.model.states import Power, Task, Vm
from kilonova.operations.cells import in_each_cell
from kilonova.operations.cloud import Cloud
from kilonova.operations.moving import MoveParams, context_of, migration_of, note
from kilonova.operations.resize_end import begin_end, drop_parked
from kilonova.operations.steps import apply, host_of, in_error, instance_of

log = structlog.get_logger("kilonova.resize")

LEFT_ALONE = frozenset({Task.DELETING, Task.SOFT_DELETING, Task.RESIZE_FINISH})
EVERY = 60.0  # seconds between looks for what has waited long enough (MG-PER-6)


async def submit(cloud: Cloud, context: RequestContext, uuid: str) -> None:
    """Raises NotFound, Conflict, or Invalid when there is nothing to confirm."""
    await begin_end(cloud, context, uuid, "confirm_resize", CONFIRM_RESIZE, Status.CONFIRMING)


async def _drop(run: Run) -> Done:
    migration, context, instance = await migration_of(run), await context_of(run), await instance_of(run)
    left = await drop_parked(run, migration, context, instance.host)
    return Done(host=migration.source_compute, write=left)


async def _finish(run: Run) -> Done:
    """Whether it runs is told by its recorded power, as a user may have turned it off (MG-RSZ-9)."""
    cloud: Cloud = run.cloud
    migration = await migration_of(run)
    source = migration.source_compute
    if source is not None and source != migration.dest_compute:
        await cloud.network.remove_bindings(run.instance_uuid, source)
    now = await cloud.db.read(lambda tx: instances.show(tx, run.instance_uuid))
    if now is None:
        raise Failed(f"Instance {run.instance_uuid} has vanished from the database.")
    state = Vm.STOPPED if now.power_state == Power.SHUTDOWN else Vm.ACTIVE

    def write(tx: Tx) -> None:
        note(tx, run, status=Status.CONFIRMED)
        migration_contexts.drop(tx, migration.uuid)

    return Done(changes={"vm_state": state, "task_state": None, "fault": None}, write=write)


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    """Nothing here is undone, but an operator may have abandoned it."""
    note(tx, run, status=Status.ERROR)
    if not error.cancelled:
        in_error(tx, run, error)


CONFIRM_RESIZE = Operation(
    name="confirm_resize",
    steps=(
        Step("drop", _drop, kind=Kind.RETRIABLE, event="compute_confirm_resize"),
        Step("finish", _finish, kind=Kind.RETRIABLE, event="compute_forget_old_host"),
    ),
    params=MoveParams,
    apply=apply,
    failed=_failed,
    deadline=600.0,
    host_of=host_of,
)


async def confirm_all_overdue(cloud: Cloud) -> None:
    await in_each_cell(cloud, confirm_overdue, "resizes that wait to be confirmed")


async def confirm_overdue(cloud: Cloud) -> int:
    """Confirm what has waited for longer than [DEFAULT]resize_confirm_window; how many were begun.

    A migration whose server is no more as it should be is in error then, by Nova's rule.
    """
    window = cloud.settings.number("resize_confirm_window")
    if not window:
        return 0
    limit = cloud.clock.now() - window * SECOND
    begun = 0
    for migration in await cloud.db.read(lambda tx: migrations.finished_before(tx, limit)):
        begun += await _confirm(cloud, migration)
    return begun


async def _confirm(cloud: Cloud, migration: Migration) -> bool:
    uuid = migration.instance_uuid
    instance = await cloud.db.read(lambda tx: instances.show(tx, uuid))
    if instance is not None and instance.task_state in LEFT_ALONE:
        return False
    wrong = _wrong(instance)
    if wrong is not None:
        log.warning("a resize cannot be confirmed", instance=uuid, migration=migration.uuid, reason=wrong)
        await cloud.db.write(
            lambda tx: migrations.update(tx, migration.uuid, expect=(Status.FINISHED,), status=Status.ERROR)
        )
        return False
    context = RequestContext(
        request_id=f"req-{cloud.new_uuid()}",
        user_id=migration.user_id,
        project_id=migration.project_id,
        roles=frozenset({"admin"}),
    )
    try:
        await submit(cloud, context, uuid)
    except KilonovaError as error:  # somebody else is at it
        log.info("a resize is not confirmed now", instance=uuid, error=str(error))
        return False
    return True


def _wrong(instance: Instance | None) -> str | None:
    if instance is None:
        return "the server is gone"
    if instance.vm_state != Vm.RESIZED or instance.task_state is not None:
        return f"the server is {instance.vm_state}/{instance.task_state}"
    return None
