"""Resizing a server, and migrating it cold: it is shut down, its files go to another host (or stay, for
another flavor on the same one), and it waits there to be confirmed or reverted.

Other than in Nova a failure at the destination leaves no server in error: all is undone, and it runs again
where it was, with the fault noted.
"""

from __future__ import annotations

from kilonova.db import instances, migration_contexts, migrations
from kilonova.db.engine import Tx
from kilonova.journal.model import Kind, Operation, Run, Step, StoredError
from kilonova.model.context import RequestContext
from kilonova.model.flavor import Flavor
from kilonova.model.instance import Instance
from kilonova.model.migration import MIGRATION, RESIZE, Status
from kilonova.model.states import Vm
from kilonova.operations import guards, rehome
from kilonova.operations import resize_checks as checks
from kilonova.operations import resize_copy as files
from kilonova.operations import resize_quota as quota
from kilonova.operations import resize_steps as steps
from kilonova.operations.cloud import Cloud
from kilonova.operations.cross_cell import may_leave
from kilonova.operations.moving import Move, MoveParams, begin_move, note
from kilonova.operations.resize_ends import concerned
from kilonova.operations.steps import apply, fault_of, most_hosts, with_all_tried
from kilonova.operations.volumes import taken_back

LONGEST = 86_400.0  # seconds: files may be large, and a host that goes down is noticed at once


async def resize(
    cloud: Cloud,
    context: RequestContext,
    instance: Instance,
    flavor_id: str,
    *,
    disk_config: str | None = None,
    across: bool = False,
) -> None:
    """``across``: the caller may have it moved to another cell.

    Raises NotFound, Conflict, Invalid for a flavor that will not do, OverQuota.
    """
    guards.check("resize", instance, context)
    await checks.check_source(cloud, instance)
    new = await checks.flavor_for(cloud, context, instance, flavor_id, disk_config)

    def also(tx: Tx, found: Instance) -> None:
        _reserve(tx, cloud, found, new)
        if disk_config is not None:
            known = {**found.system_metadata, "disk_config": disk_config}
            instances.update(tx, found.uuid, expect_task=instances.ANY, system_metadata=known)

    if cloud.cell_uuid is not None:
        await cloud.top.read(lambda tx: quota.check(tx, cloud, instance, instance.flavor, new))
    move = Move(
        guard="resize",
        operation=RESIZE_SERVER,
        kind=RESIZE,
        status=Status.PRE_MIGRATING,
        new_flavor=new,
        also=also,
    )
    params = MoveParams(migration=cloud.new_uuid(), across=await may_leave(cloud, across))
    await begin_move(cloud, context, instance.uuid, move, params)


def _reserve(tx: Tx, cloud: Cloud, instance: Instance, new: Flavor) -> None:
    """At once where quota is in the same database; else it is the operation's first step."""
    if cloud.cell_uuid is None:
        quota.reserve(tx, cloud, instance, instance.flavor, new)


async def migrate(
    cloud: Cloud,
    context: RequestContext,
    instance: Instance,
    *,
    host: str | None = None,
    across: bool = False,
) -> None:
    """To the named host or any other; ``across`` as for ``resize``.

    Raises NotFound, Conflict, Invalid for a host that will not do.
    """
    guards.check("migrate", instance, context)
    await checks.check_source(cloud, instance)
    across = await may_leave(cloud, across)
    if host is not None:
        await checks.check_target(cloud, instance, host, across=across)
    move = Move(guard="migrate", operation=RESIZE_SERVER, kind=MIGRATION, status=Status.PRE_MIGRATING)
    params = MoveParams(migration=cloud.new_uuid(), host=host, across=across)
    await begin_move(cloud, context, instance.uuid, move, params)


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    """All is undone: the server is as it was, unless it could not be started again.

    Of one that was abandoned halfway, so that it still has a destination, what it remembers is kept: a
    deletion clears up by it.
    """
    migration = migrations.show(tx, run.params.migration)
    note(tx, run, status=Status.ERROR)
    fault = fault_of(with_all_tried(run, error), run.cloud.clock.now())
    changes = {"task_state": None, "progress": 0, "fault": fault}
    if migration is not None and migration.dest_compute is not None:
        quota.settle_abandoned(tx, run)
        apply(tx, run, {**changes, "vm_state": Vm.ERROR})
        return
    migration_contexts.drop(tx, run.params.migration)
    if error.cancelled:
        return
    unstarted = steps.UNSTARTED in run.action.outputs
    apply(tx, run, {**changes, "vm_state": Vm.ERROR} if unstarted else changes)


RESIZE_SERVER = Operation(
    name="resize",
    steps=(
        Step("book", steps.book, steps.unbook, event="conductor_migrate_server"),
        Step("place", steps.place, steps.unplace, event="cold_migrate"),
        Step("volumes", steps.bring_volumes, taken_back, event="compute_connect_volumes"),
        Step("check", steps.check, steps.uncheck, event="compute_prep_resize"),
        Step("stop", steps.stop, steps.start_again, event="compute_power_off_guest"),
        Step("park", steps.park, steps.unpark, event="compute_put_disks_aside"),
        Step("unplug", steps.unplug_old, steps.plug_old, event="compute_unplug_vifs"),
        Step("bind", steps.bind, steps.unbind, event="compute_bind_ports"),
        Step("copy", files.copy, files.uncopy, event="compute_resize_instance"),
        Step("fit", steps.fit, steps.unfit, event="compute_resize_disks"),
        Step("plug", steps.plug, steps.unplug, event="compute_plug_vifs"),
        Step("start", steps.start, steps.destroy, event="compute_start_guest"),
        Step("wired", steps.wired, event="compute_wait_for_vif_plugged"),
        Step("activate", steps.activate, steps.deactivate, event="compute_switch_host"),
        Step("finish", steps.finish, event="compute_finish_resize"),
        Step("release", steps.release_volumes, kind=Kind.RETRIABLE, event="compute_release_volumes"),
        Step("rehome", rehome.to_destination, kind=Kind.RETRIABLE, event=rehome.EVENT),
    ),
    params=MoveParams,
    apply=apply,
    failed=_failed,
    deadline=LONGEST,
    retry_from="place",
    max_rounds=lambda run: most_hosts(run, run.params.host),
    host_of=concerned,
)
