"""Moving a server to another host while it runs: the request, the plan, and what is left when it fails.

Up to `migrate` everything is undone when it fails, and the server is as before.  Once the guest goes on at
the destination there is no way back, and what follows is repeated until it has succeeded.
"""

from __future__ import annotations

from kilonova.clock import Clock
from kilonova.db import hosts, instances, migration_contexts, migrations
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Forbidden, HostFault, Invalid, KilonovaError
from kilonova.journal.model import ABANDONED, Kind, Operation, Run, Step, StoredError
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.migration import LIVE, Status
from kilonova.model.states import Vm
from kilonova.operations import live_after, live_queue, live_steps, live_travel
from kilonova.operations.cloud import Cloud
from kilonova.operations.live_params import LiveMigrateParams
from kilonova.operations.live_steering import Aborted
from kilonova.operations.moving import Move, begin_move, note
from kilonova.operations.steps import apply, fault_of, with_all_tried
from kilonova.operations.volumes import taken_back

LOOK = 0.2  # seconds between two looks of a request that waits for the checks
DAYS = 7 * 24 * 3600.0


async def submit(
    cloud: Cloud,
    context: RequestContext,
    uuid: str,
    *,
    host: str | None = None,
    forced: bool = False,
    block: bool | None = None,
    disk_over_commit: bool = False,
) -> str:
    """Accept a live migration; its uuid.

    ``host``: only there; the scheduler validates it unless it is ``forced``.  ``block``: with the disks
    (None: as the storage of the two hosts demands).  Raises NotFound, Conflict, Forbidden, Invalid.
    """
    if host is not None:
        known = await cloud.top.read(lambda tx: hosts.show(tx, host))
        if known is None or known.cell_uuid != cloud.cell_uuid:
            raise Invalid(f"Compute host {host} could not be found.")
    params = LiveMigrateParams(
        migration=cloud.new_uuid(), host=host, forced=forced, block=block, disk_over_commit=disk_over_commit
    )

    def also(tx: Tx, instance: Instance) -> None:
        _refuse_what_stays(instance)
        if host is not None and host == instance.host:
            raise Invalid(f"Unable to migrate instance ({uuid}) to current host ({host}).")

    move = Move(guard="live_migrate", operation=LIVE_MIGRATE, kind=LIVE, status=Status.ACCEPTED, also=also)
    await begin_move(cloud, context, uuid, move, params)
    return params.migration


def _refuse_what_stays(instance: Instance) -> None:
    """What cannot be taken along while it runs (API-5, API-6).  Raises Conflict, Forbidden."""
    specs = instance.flavor.extra_specs
    properties = instance.image.properties if instance.image else {}
    if "accel:device_profile" in specs:
        raise Forbidden("Forbidden with instance(s) with accelerators: it cannot be migrated live.")
    for name, what in (("mem_encryption", "encrypted memory (SEV)"), ("tpm_version", "a virtual TPM")):
        if f"hw:{name}" in specs or f"hw_{name}" in properties:
            raise Conflict(f"Operation 'live-migration' is not supported for an instance with {what}.")


async def checked(cloud: Cloud, migration: str) -> None:
    """Wait until the hosts have been found fit, as requests before 2.34 do.  Raises Invalid if none was."""
    clock: Clock = cloud.clock
    while True:
        found = await cloud.db.read(lambda tx: migrations.show(tx, migration))
        if found is None or found.status != Status.ACCEPTED:
            break
        await clock.sleep(LOOK)
    if found is not None and found.status in (Status.ERROR, Status.FAILED):
        said = await cloud.db.read(lambda tx: _why(tx, found.instance_uuid))
        raise Invalid(f"Migration pre-check error: {said}")


def _why(tx: Tx, uuid: str) -> str:
    instance = instances.show_any(tx, uuid)
    return "" if instance is None or instance.fault is None else instance.fault.message


# ---- when it fails ----


def _foreseen(kind: type[KilonovaError] = KilonovaError) -> set[str]:
    """The names of all errors that somebody has raised on purpose."""
    return {kind.__name__}.union(*(_foreseen(each) for each in kind.__subclasses__()))


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    """All is undone: the server is as before, but for what nobody has foreseen (Nova's rules)."""
    cloud: Cloud = run.cloud
    source = _source_of(tx, run)
    live_queue.give(tx, cloud, source, ended=run.params.migration)  # first: its lock comes before ours
    note(tx, run, status=_status(run, error))
    if error.kind != ABANDONED:  # else a deletion finds by it what either host may still have
        migration_contexts.drop(tx, run.params.migration)
    changes: dict[str, object] = {"task_state": None, "progress": 0}
    if not error.cancelled and error.kind != Aborted.__name__:
        changes["fault"] = fault_of(with_all_tried(run, error), cloud.clock.now())
    if error.kind not in _foreseen() or error.kind == live_travel.GuestDied.__name__:
        changes["vm_state"] = Vm.ERROR
    apply(tx, run, changes)


def _source_of(tx: Tx, run: Run) -> str:
    found = migrations.show(tx, run.params.migration)
    return "" if found is None else str(found.source_compute)


def _status(run: Run, error: StoredError) -> str:
    if error.cancelled or error.kind == Aborted.__name__:
        return Status.CANCELLED
    if error.kind not in _foreseen():  # also of what an operator has abandoned
        return Status.ERROR
    no_more_tries = error.kind == HostFault.__name__ and run.params.host is None
    return Status.FAILED if error.step == "migrate" or no_more_tries else Status.ERROR


def _rounds(run: Run) -> int:
    """How many hosts may be tried: a host that was named is the only one."""
    if run.params.host:
        return 1
    retries = run.cloud.settings.number("migrate_max_retries")
    return 1 << 30 if retries < 0 else retries + 1


_PIVOT, _AFTER = Kind.PIVOT, Kind.RETRIABLE
LIVE_MIGRATE = Operation(
    name="live_migrate",
    steps=(
        Step("place", live_steps.place, live_steps.unplace, event="conductor_live_migrate_instance"),
        Step("volumes", live_steps.bring_volumes, taken_back, event="compute_connect_volumes"),
        Step("check", live_steps.check, event="compute_check_can_live_migrate_destination"),
        Step("bind", live_steps.bind, live_steps.unbind, event="compute_bind_ports_to_destination"),
        Step("queue", live_steps.queue, event="compute_live_migration_queued"),
        Step("prepare", live_steps.prepare, live_steps.unprepare, event="compute_pre_live_migration"),
        Step("wired", live_steps.wired, event="compute_wait_for_vif_plugged"),
        Step("migrate", live_travel.migrate, live_travel.unmigrate, _PIVOT, "compute_live_migration"),
        Step("switch", live_after.switch, None, _AFTER, "compute_activate_port_bindings"),
        Step("settle", live_after.settle, None, _AFTER, "compute_post_live_migration_at_destination"),
        Step("leave", live_after.leave, None, _AFTER, "compute_post_live_migration"),
        Step("finish", live_after.finish, None, _AFTER, "conductor_finish_live_migration"),
    ),
    params=LiveMigrateParams,
    apply=apply,
    failed=_failed,
    deadline=DAYS,
    patience=300.0,
    retry_from="place",
    max_rounds=_rounds,
    host_of=live_steps.destination_of,
)
