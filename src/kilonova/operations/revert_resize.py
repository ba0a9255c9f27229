"""Reverting a resize or a cold migration: the server is again where and what it was, with the disks that it
had when it left.

It is turned off and its ports go back, all of which can be undone; the point of no return is when its old
files are back in their place.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import structlog
from msgspec.structs import replace

from kilonova.db import migration_contexts
from kilonova.db.engine import Tx
from kilonova.errors import Failed, HostFault, TryAgain
from kilonova.journal.model import ABANDONED, DONE, Done, Kind, Operation, Run, Step, StoredError, Wait
from kilonova.model.context import RequestContext
from kilonova.model.instance import Fault
from kilonova.model.migration import Status
from kilonova.model.states import Power, Vm
from kilonova.operations import rehome
from kilonova.operations import resize_quota as quota
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import is_down, undone_at
from kilonova.operations.moving import (
    MoveParams,
    context_of,
    give_back_place,
    migration_of,
    mover_of,
    nameless,
    note,
    old_guest,
    remember,
)
from kilonova.operations.resize_end import begin_end
from kilonova.operations.resize_ends import at_source, destination_guest, ends, have_again, ran
from kilonova.operations.steps import (
    agent_of,
    apply,
    command,
    guest_of,
    host_of,
    idle_again,
    in_error,
    instance_of,
    until_wired_at,
)
from kilonova.operations.volumes import brought, kept, taken_back

log = structlog.get_logger("kilonova.resize")

WRONG = "wrong"  # in the outputs: why the guest does not run at the source


async def submit(cloud: Cloud, context: RequestContext, uuid: str) -> None:
    """Raises NotFound, Conflict, or Invalid when there is nothing to revert."""
    await begin_end(cloud, context, uuid, "revert_resize", REVERT_RESIZE, Status.REVERTING)


# ---- the destination lets go ----


async def _check(run: Run) -> Done:
    """Both hosts are needed: what a host that is down still runs is not known."""
    for host in dict.fromkeys(await ends(run)):
        if await is_down(run, host):
            raise Failed(f"The resize cannot be reverted while the host {host} is down.")
    return DONE


async def _bring_volumes(run: Run) -> Done:
    """Those that the server has by now are connected to the source, anew."""
    old, new = await ends(run)
    return await brought(run, new, old, at_source, back=True)


async def _stop(run: Run) -> Done:
    _, new = await ends(run)
    async with at_source(run, new):
        await agent_of(run, new).destroy(command(run, "stop"), run.instance_uuid)
    return Done(host=new, output={"runs": (await instance_of(run)).power_state == Power.RUNNING})


async def _start_again(run: Run) -> Done:
    _, new = await ends(run)
    known = run.output("stop")
    runs = known["runs"] if known else (await instance_of(run)).power_state == Power.RUNNING
    guest = await destination_guest(run)
    try:
        observed = await have_again(run, "stop.undo", new, guest, running=runs)
    except HostFault as error:
        log.error("a guest does not start again", instance=run.instance_uuid, host=new, error=str(error))
        return Done(host=new, changes={"power_state": Power.NOSTATE})
    return Done(host=new, changes={"observed": observed})


async def _unplug(run: Run) -> Done:
    old, new = await ends(run)
    if old == new:
        return DONE
    async with at_source(run, new):
        await agent_of(run, new).unplug(
            command(run, "unplug"), run.instance_uuid, (await context_of(run)).new_vifs
        )
    return Done(host=new)


async def _plug_again(run: Run) -> Done:
    old, new = await ends(run)
    if old != new:
        await agent_of(run, new).plug(command(run, "unplug.undo"), await destination_guest(run))
    return Done(host=new)


async def _bind(run: Run) -> Done:
    """The ports are bound to the source anew: what was known of their wiring there is long past."""
    cloud: Cloud = run.cloud
    old, new = await ends(run)
    context = await context_of(run)
    if old != new:
        details = await cloud.scheduler.details(old)
        await cloud.network.remove_bindings(run.instance_uuid, old)
        await cloud.network.add_bindings(run.instance_uuid, old, details)
        vifs = await cloud.network.activate_bindings(run.instance_uuid, old)
        context = replace(context, old_vifs=vifs)

    def write(tx: Tx) -> None:
        remember(tx, run, context)
        cloud.journal.drop_signals(tx, run.instance_uuid)

    return Done(write=write)


async def _bind_again(run: Run) -> Done:
    old, new = await ends(run)
    if old != new:
        await run.cloud.network.activate_bindings(run.instance_uuid, new)
    return Done()


# ---- the source takes over ----


async def _plug(run: Run) -> Done:
    old, new = await ends(run)
    if old == new:
        return DONE
    async with at_source(run, old):
        await agent_of(run, old).plug(command(run, "plug"), await old_guest(run))
    return Done(host=old)


async def _unplug_again(run: Run) -> Done:
    old, new = await ends(run)
    if old == new:
        return DONE
    await agent_of(run, old).unplug(
        command(run, "plug.undo"), run.instance_uuid, (await context_of(run)).old_vifs
    )
    journal = run.cloud.journal
    return Done(host=old, write=lambda tx: journal.drop_signals(tx, run.instance_uuid))


async def _unpark(run: Run) -> Done:
    """Where both have the same files there is no way back from what may have been done: the source is waited
    for, whatever is known of it."""
    old, new = await ends(run)
    try:
        async with at_source(run, old):
            await mover_of(run, old).unpark(command(run, "unpark"), run.instance_uuid)
    except Failed as error:
        shared = old == new or (await context_of(run)).shared
        if shared and isinstance(error.__cause__, TryAgain):
            raise error.__cause__ from error
        raise
    return Done(host=old)


async def _park_again(run: Run) -> Done:
    """A source that has given no answer may have put the files back that it had put aside."""
    old, new = await ends(run)
    if old != new and not (await context_of(run)).shared:
        await mover_of(run, old).park(command(run, "unpark.undo"), run.instance_uuid)
    return Done(host=old)


async def _switch(run: Run) -> Done:
    """From this commit on the server is on its old host, with its old flavor and what it holds there."""
    cloud: Cloud = run.cloud
    old, _ = await ends(run)
    instance, context, migration = await instance_of(run), await context_of(run), await migration_of(run)
    await give_back_place(run)
    changes: dict[str, Any] = {
        "host": old,
        "node": migration.source_node,
        "availability_zone": await cloud.scheduler.zone(old) or instance.availability_zone,
        "vifs": context.old_vifs,
        "volumes": context.old_volumes,
        "flavor": context.old_flavor,
        "power_generation": 0,  # of another clock from now on
        "power_state": Power.NOSTATE,
    }
    write = None
    if context.new_flavor is not None:
        write = await quota.rebook(run, instance, context.new_flavor, context.old_flavor)
    return Done(host=old, changes=changes, write=write)


async def _start(run: Run) -> Done:
    """A guest that does not start any more is in error at the end, and may be rebooted hard."""
    old, _ = await ends(run)
    context, guest = await context_of(run), await nameless(run, await guest_of(run, await instance_of(run)))
    try:
        if ran(context):
            observed = await agent_of(run, old).start(command(run, "start"), guest, paused=True)
        else:
            observed = await have_again(run, "start", old, guest, running=False)
    except (HostFault, Failed) as error:
        log.error("a reverted guest does not start", instance=run.instance_uuid, host=old, error=str(error))
        run.action.outputs[WRONG] = str(error)
        return Done(host=old)
    return Done(host=old, changes={"observed": observed})


async def _wired(run: Run) -> Done | Wait:
    old, new = await ends(run)
    context, outputs = await context_of(run), run.action.outputs
    if old == new or not ran(context) or WRONG in outputs:
        return DONE
    try:
        waits = await until_wired_at(run, old, context.old_vifs, only=True)
    except HostFault as error:
        outputs[WRONG] = str(error)
        return DONE
    if not isinstance(waits, Wait):
        return waits

    def late(missing: set[tuple[str, str]]) -> None:
        problem = waits.late(missing)
        if problem is not None:  # there is no way back: it is told of at the end
            outputs[WRONG] = str(problem)

    return dataclasses.replace(waits, late=late)


async def _resume(run: Run) -> Done:
    old, _ = await ends(run)
    outputs = run.action.outputs
    if not ran(await context_of(run)) or WRONG in outputs:
        return DONE
    try:
        observed = await agent_of(run, old).resume(command(run, "resume"), run.instance_uuid)
    except (HostFault, Failed) as error:
        outputs[WRONG] = str(error)
        return Done(host=old)
    return Done(host=old, changes={"observed": observed})


async def _finish(run: Run) -> Done:
    """Take away what is left at the destination; a host that went down meanwhile is left to itself."""
    cloud: Cloud = run.cloud
    old, new = await ends(run)
    context, migration = await context_of(run), await migration_of(run)
    left = None
    if old != new:
        if not context.shared:
            left = (
                await undone_at(
                    run,
                    new,
                    lambda: agent_of(run, new).discard(command(run, "finish"), run.instance_uuid),
                    context.new_vifs,
                )
            ).write
        await cloud.network.remove_bindings(run.instance_uuid, new)
    await kept(run, stay=context.old_volumes, go=context.new_volumes)

    def write(tx: Tx) -> None:
        note(tx, run, status=Status.REVERTED)
        migration_contexts.drop(tx, migration.uuid)
        if left is not None:
            left(tx)

    return Done(host=new, changes=_outcome(run, context.old_vm_state), write=write)


def _outcome(run: Run, old_vm_state: str) -> dict[str, Any]:
    wrong = run.action.outputs.get(WRONG)
    if wrong is None:
        return {"vm_state": old_vm_state, "task_state": None, "fault": None}
    fault = Fault(code=500, message=wrong[:255], created=run.cloud.clock.now(), details=wrong)
    return {"vm_state": Vm.ERROR, "task_state": None, "fault": fault}


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    """All is undone: the server waits for the user's decision as before.  Not so if it was abandoned."""
    if error.kind == ABANDONED:
        note(tx, run, status=Status.ERROR)
        in_error(tx, run, error)
        return
    note(tx, run, status=Status.FINISHED)
    if not error.cancelled:
        idle_again(tx, run, error)


REVERT_RESIZE = Operation(
    name="revert_resize",
    steps=(
        Step("check", _check, event="compute_check_hosts"),
        Step("volumes", _bring_volumes, taken_back, event="compute_connect_volumes"),
        Step("stop", _stop, _start_again, event="compute_revert_resize"),
        Step("unplug", _unplug, _plug_again, event="compute_unplug_vifs"),
        Step("bind", _bind, _bind_again, event="compute_bind_ports"),
        Step("plug", _plug, _unplug_again, event="compute_plug_vifs"),
        Step("unpark", _unpark, _park_again, kind=Kind.PIVOT, event="compute_take_disks_back"),
        Step("switch", _switch, kind=Kind.RETRIABLE, event="compute_switch_host"),
        Step("start", _start, kind=Kind.RETRIABLE, event="compute_finish_revert_resize"),
        Step("wired", _wired, kind=Kind.RETRIABLE, event="compute_wait_for_vif_plugged"),
        Step("resume", _resume, kind=Kind.RETRIABLE, event="compute_resume_guest"),
        Step("finish", _finish, kind=Kind.RETRIABLE, event="compute_forget_new_host"),
        Step("rehome", rehome.to_source, kind=Kind.RETRIABLE, event=rehome.EVENT),
    ),
    params=MoveParams,
    apply=apply,
    failed=_failed,
    deadline=600.0,
    host_of=host_of,
)
