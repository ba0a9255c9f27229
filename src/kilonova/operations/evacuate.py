"""Evacuating a server from a host that is down: it is made anew on another one, from its files where the
storage is shared, else from its image.

What keeps it from running twice: the host is down by its missing signs of life or an operator's word when the
operation begins, and again before the point of no return.  From that commit on the server belongs to its new
host, its ports are bound there and nowhere else, and the old host owes its clearing.  If it gives signs of
life by then it is cleared before the new guest runs; if not, at its first word (`operations.leftovers`).
"""

from __future__ import annotations

from kilonova.db import migration_contexts
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Invalid, NoValidHost
from kilonova.journal.model import Kind, Operation, Run, Step, StoredError
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.migration import EVACUATION, Status
from kilonova.model.states import Task, Vm
from kilonova.operations import evacuate_steps as steps
from kilonova.operations.cloud import Cloud
from kilonova.operations.evacuate_steps import EvacuateParams, NotDown
from kilonova.operations.leftovers import host_is_down
from kilonova.operations.moving import Move, begin_move, note
from kilonova.operations.steps import apply, fault_of, most_hosts
from kilonova.operations.volumes import taken_back

LEAVING_FOR_GOOD = frozenset({Task.DELETING, Task.SOFT_DELETING})


async def submit(
    cloud: Cloud,
    context: RequestContext,
    instance: Instance,
    *,
    host: str | None = None,
    forced: bool = False,
    on_shared_storage: bool | None = None,
    stop: bool = False,
) -> None:
    """Whatever else is being done to the server is given up, but for a deletion.

    ``on_shared_storage``: what the user says of its files; None: it is found out.  ``stop``: it stays off.
    Raises NotFound, Conflict, or Invalid when its host is not down.
    """
    if instance.host is not None and not await host_is_down(cloud, instance.host):
        raise Invalid(f"Compute service of {instance.host} is still in use.")
    params = EvacuateParams(
        migration=cloud.new_uuid(),
        host=host,
        forced=forced,
        on_shared_storage=on_shared_storage,
        stop=stop,
    )

    def give_up_the_rest(tx: Tx, found: Instance) -> None:
        if found.host != instance.host:  # which was not asked about
            raise Conflict(f"Cannot 'evacuate' instance {found.uuid}: it has just moved to {found.host}.")
        if found.task_state in LEAVING_FOR_GOOD or _is_evacuated(cloud, tx, found):
            raise Conflict(
                f"Cannot 'evacuate' instance {found.uuid} while it is in task_state {found.task_state}"
            )
        cloud.journal.cancel(tx, found.uuid)

    move = Move(
        guard="evacuate",
        operation=EVACUATE,
        kind=EVACUATION,
        status=Status.ACCEPTED,
        also=give_up_the_rest,
    )
    await begin_move(cloud, context, instance.uuid, move, params)


def _is_evacuated(cloud: Cloud, tx: Tx, instance: Instance) -> bool:
    return instance.task_state in steps.EVACUATING and cloud.journal.is_busy(tx, instance.uuid)


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    """All is undone, the server is where it was.  By Nova's rules: as it was when nothing was wrong but the
    host that was forced, else in error; its migration has failed, or is in error when no host was found."""
    migration_contexts.drop(tx, run.params.migration)
    refused = error.kind == NoValidHost.__name__
    claim_lost = refused and run.params.forced and not any(error.removed.values())
    note(tx, run, status=Status.ERROR if refused and not claim_lost else Status.FAILED)
    if error.cancelled:
        return
    changes = {"task_state": None, "fault": fault_of(error, run.cloud.clock.now())}
    if error.kind == NotDown.__name__ or (refused and run.params.forced):
        apply(tx, run, changes)
    else:
        apply(tx, run, {**changes, "vm_state": Vm.ERROR})


EVACUATE = Operation(
    name="evacuate",
    steps=(
        Step("place", steps.place, steps.unplace, event="rebuild_server"),
        Step("look", steps.look, event="compute_check_instance_exists"),
        Step("volumes", steps.bring_volumes, taken_back, event="compute_connect_volumes"),
        Step("bind", steps.bind, steps.unbind, event="compute_bind_ports"),
        Step("prepare", steps.prepare, steps.discard, event="compute_prepare_disks"),
        Step("plug", steps.plug, steps.unplug, event="compute_plug_vifs"),
        Step("start", steps.start, steps.destroy, event="compute_rebuild_instance"),
        Step("wired", steps.wired, event="compute_wait_for_vif_plugged"),
        Step("still_down", steps.still_down, event="compute_check_source_down"),
        Step("switch", steps.switch, kind=Kind.PIVOT, event="compute_switch_host"),
        Step("fence", steps.fence, kind=Kind.RETRIABLE, event="compute_fence_source"),
        Step("run", steps.run_there, kind=Kind.RETRIABLE, event="compute_resume_guest"),
    ),
    params=EvacuateParams,
    apply=apply,
    failed=_failed,
    deadline=900.0,
    retry_from="place",
    max_rounds=lambda run: most_hosts(run, run.params.host),
    host_of=steps.concerned,
)
