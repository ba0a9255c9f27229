"""The steps of a resize and of a cold migration, which is a resize without another flavor.

Until the last commit everything can be undone: the guest is off, its files at the source are put aside, and
both sides are booked.
"""

from __future__ import annotations

from typing import Any

import structlog
from msgspec.structs import replace

from kilonova.db.engine import Tx
from kilonova.errors import Failed, HostFault
from kilonova.journal.model import DONE, Done, Run, Wait
from kilonova.model.migration import MigrationContext, Status
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import resize_quota as quota
from kilonova.operations.cloud import Cloud
from kilonova.operations.cross_cell import cells_for
from kilonova.operations.leftovers import undone_at
from kilonova.operations.moving import (
    context_of,
    migration_of,
    mover_of,
    new_guest,
    note,
    old_guest,
    place_elsewhere,
    placed,
    remember,
    unplaced,
)
from kilonova.operations.resize_ends import (
    at_destination,
    at_source,
    destination_guest,
    ends,
    have_again,
    ran,
)
from kilonova.operations.steps import agent_of, command, instance_of, until_wired_at
from kilonova.operations.stop import shutdown_timeout
from kilonova.operations.volumes import at_new_host, brought

log = structlog.get_logger("kilonova.resize")

UNSTARTED = "unstarted"  # in the outputs: why the guest could not be started again


# ---- before anything is touched ----


async def book(run: Run) -> Done:
    instance, context = await instance_of(run), await context_of(run)
    if context.new_flavor is not None:
        await quota.book(run, instance, context.old_flavor, context.new_flavor)
    return DONE


async def unbook(run: Run) -> Done:
    instance, context = await instance_of(run), await context_of(run)
    if context.new_flavor is None:
        return DONE
    taken = quota.booked(context.old_flavor, context.new_flavor)
    return Done(write=await quota.rebook(run, instance, taken, context.old_flavor))


async def place(run: Run) -> Done:
    instance, context = await instance_of(run), await context_of(run)
    await migration_of(run)
    new = context.new_flavor
    stays = new is not None and run.cloud.settings.flag("allow_resize_to_same_host")
    wanted = replace(instance, flavor=new or context.old_flavor)
    cells = await cells_for(run)
    chosen = await place_elsewhere(run, instance=wanted, ignored={} if stays else None, **cells)
    return await placed(run, chosen)


async def unplace(run: Run) -> Done:
    await migration_of(run)
    return await unplaced(run)


async def bring_volumes(run: Run) -> Done:
    """Before anything is touched: a host that does not reach one of them is none for this server."""
    return await brought(run, *await ends(run), at_destination)


async def check(run: Run) -> Done:
    """Whether the destination can take the files, or has them in the same directory."""
    old, new = await ends(run)
    context = await context_of(run)
    shared = False
    if old != new:
        async with at_destination(run, new):
            shared = await _shares(run, old, new)
            if not shared:
                guest = await new_guest(run, context.old_vifs)
                await mover_of(run, new).check_room(command(run, "check.room"), guest)
    return Done(
        host=new,
        changes={"task_state": Task.RESIZE_MIGRATING},
        write=lambda tx: _note(tx, run, Status.MIGRATING, replace(context, shared=shared)),
    )


async def uncheck(run: Run) -> Done:
    context = await context_of(run)
    return Done(
        changes={"task_state": Task.RESIZE_PREP},
        write=lambda tx: _note(tx, run, Status.PRE_MIGRATING, replace(context, shared=False)),
    )


def _note(tx: Tx, run: Run, status: str, context: MigrationContext) -> None:
    note(tx, run, status=status)
    remember(tx, run, context)


async def _shares(run: Run, old: str, new: str) -> bool:
    async with at_source(run, old):
        probe = await mover_of(run, old).put_probe(command(run, "check.put"), run.instance_uuid)
    try:
        return await mover_of(run, new).see_probe(run.instance_uuid, probe)
    finally:
        async with at_source(run, old):
            await mover_of(run, old).remove_probe(command(run, "check.remove"), run.instance_uuid, probe)


# ---- the source lets go ----


async def stop(run: Run) -> Done:
    """A clean shutdown: what the guest has not written yet would not travel."""
    old, _ = await ends(run)
    instance, context = await instance_of(run), await context_of(run)
    if not ran(context):
        return Done(host=old)
    async with at_source(run, old):
        observed = await agent_of(run, old).shut_down(
            command(run, "stop"),
            run.instance_uuid,
            timeout=shutdown_timeout(run.cloud, instance),
            clean=True,
        )
    return Done(host=old, changes={"observed": observed})


async def start_again(run: Run) -> Done:
    """A guest that does not start any more where it was is told of, and does not hold up the rest."""
    old, _ = await ends(run)
    context = await context_of(run)
    outputs = run.action.outputs
    outputs.pop(UNSTARTED, None)
    try:
        observed = await have_again(run, "stop.undo", old, await old_guest(run), running=ran(context))
    except HostFault as error:
        outputs[UNSTARTED] = f"The server could not be started again on {old}: {error}"
        log.error("a guest does not start again", instance=run.instance_uuid, host=old, error=str(error))
        return Done(host=old)
    return Done(host=old, changes={"observed": observed})


async def park(run: Run) -> Done:
    old, _ = await ends(run)
    async with at_source(run, old):
        await mover_of(run, old).park(command(run, "park"), run.instance_uuid)
    return Done(host=old)


async def unpark(run: Run) -> Done:
    old, _ = await ends(run)
    await mover_of(run, old).unpark(command(run, "park.undo"), run.instance_uuid)
    return Done(host=old)


async def unplug_old(run: Run) -> Done:
    """Before the ports are at two hosts: nobody is on the old ones any more."""
    old, new = await ends(run)
    if old == new:
        return DONE
    async with at_source(run, old):
        await agent_of(run, old).unplug(
            command(run, "unplug"), run.instance_uuid, (await context_of(run)).old_vifs
        )
    return Done(host=old)


async def plug_old(run: Run) -> Done:
    old, new = await ends(run)
    if old != new:
        await agent_of(run, old).plug(command(run, "unplug.undo"), await old_guest(run))
    return Done(host=old)


# ---- the destination takes over ----


async def bind(run: Run) -> Done:
    cloud: Cloud = run.cloud
    old, new = await ends(run)
    context = await context_of(run)
    vifs = context.old_vifs
    if old != new:
        details = await cloud.scheduler.details(new)
        try:
            vifs = await cloud.network.add_bindings(run.instance_uuid, new, details)
        except Failed as error:
            raise HostFault(str(error)) from error  # there; they may be bound elsewhere

    def write(tx: Tx) -> None:
        remember(tx, run, replace(context, new_vifs=vifs))
        cloud.journal.drop_signals(tx, run.instance_uuid)  # of ports that were plugged at the source

    return Done(write=write)


async def unbind(run: Run) -> Done:
    old, new = await ends(run)
    context = await context_of(run)
    if old != new:
        await run.cloud.network.remove_bindings(run.instance_uuid, new)
    return Done(write=lambda tx: remember(tx, run, replace(context, new_vifs=())))


async def fit(run: Run) -> Done:
    _, new = await ends(run)
    async with at_destination(run, new):
        await mover_of(run, new).fit_disks(command(run, "fit"), await destination_guest(run))
    return Done(host=new, changes={"task_state": Task.RESIZE_FINISH})


async def unfit(run: Run) -> Done:
    return Done(changes={"task_state": Task.RESIZE_MIGRATED})


async def plug(run: Run) -> Done:
    _, new = await ends(run)
    async with at_destination(run, new):
        await agent_of(run, new).plug(command(run, "plug"), await destination_guest(run))
    return Done(host=new)


async def unplug(run: Run) -> Done:
    old, new = await ends(run)
    context, journal = await context_of(run), run.cloud.journal
    if old == new:
        return Done(host=new)  # they are the guest's as well when it is back
    return await undone_at(
        run,
        new,
        lambda: agent_of(run, new).unplug(command(run, "plug.undo"), run.instance_uuid, context.new_vifs),
        context.new_vifs,
        keep_files=context.shared,
        also=lambda tx: journal.drop_signals(tx, run.instance_uuid),
    )


async def start(run: Run) -> Done:
    """Paused, also where it is to stay off: so it is known that its new host can run it."""
    _, new = await ends(run)
    async with at_destination(run, new):
        await agent_of(run, new).start(command(run, "start"), await destination_guest(run), paused=True)
    return Done(host=new)


async def destroy(run: Run) -> Done:
    old, new = await ends(run)
    context = await context_of(run)

    async def remove() -> None:
        await agent_of(run, new).destroy(command(run, "start.undo"), run.instance_uuid)

    if old == new:
        await remove()
        return Done(host=new)
    return await undone_at(run, new, remove, context.new_vifs, keep_files=context.shared)


async def wired(run: Run) -> Done | Wait:
    old, new = await ends(run)
    context = await context_of(run)
    if old == new or not ran(context):
        return DONE
    return await until_wired_at(run, new, context.new_vifs)


async def activate(run: Run) -> Done:
    """From this commit on the server is on its new host, with its new flavor."""
    cloud: Cloud = run.cloud
    old, new = await ends(run)
    instance, context, migration = await instance_of(run), await context_of(run), await migration_of(run)
    vifs = context.new_vifs
    if old != new:
        vifs = await cloud.network.activate_bindings(run.instance_uuid, new)
    changes: dict[str, Any] = {
        "host": new,
        "node": migration.dest_node,
        "availability_zone": run.output("place")["zone"],
        "vifs": vifs,
        "volumes": context.new_volumes,
        "power_generation": 0,  # of another clock from now on
    }
    write = None
    if context.new_flavor is not None:
        changes["flavor"] = context.new_flavor
        taken = quota.booked(context.old_flavor, context.new_flavor)
        write = await quota.rebook(run, instance, taken, context.new_flavor)
    return Done(host=new, output={"zone": instance.availability_zone}, changes=changes, write=write)


async def deactivate(run: Run) -> Done:
    cloud: Cloud = run.cloud
    old, new = await ends(run)
    instance, context, migration = await instance_of(run), await context_of(run), await migration_of(run)
    done = run.output("activate")
    vifs = context.old_vifs
    if old != new:
        vifs = await cloud.network.activate_bindings(run.instance_uuid, old)
    changes: dict[str, Any] = {
        "host": old,
        "node": migration.source_node,
        "availability_zone": done["zone"] if done else instance.availability_zone,
        "vifs": vifs,
        "power_state": Power.SHUTDOWN,  # as when it left; what was seen at the other host is over
        "volumes": context.old_volumes,
        "power_generation": 0,
        "flavor": context.old_flavor,
    }
    write = None
    if context.new_flavor is not None and (done or cloud.cell_uuid is not None):
        taken = quota.booked(context.old_flavor, context.new_flavor)
        write = await quota.rebook(run, instance, context.new_flavor, taken)
    return Done(host=old, changes=changes, write=write)


async def finish(run: Run) -> Done:
    _, new = await ends(run)
    context = await context_of(run)
    async with at_destination(run, new):
        agent = agent_of(run, new)
        if ran(context):
            observed = await agent.resume(command(run, "finish"), run.instance_uuid)
        else:
            observed = await agent.shut_down(
                command(run, "finish"), run.instance_uuid, timeout=0, clean=False
            )
    changes = {
        "observed": observed,
        "vm_state": Vm.RESIZED,
        "task_state": None,
        "launched_at": run.cloud.clock.now(),
        "progress": 0,
        "fault": None,
    }
    return Done(host=new, changes=changes, write=lambda tx: note(tx, run, status=Status.FINISHED))


async def release_volumes(run: Run) -> Done:
    """The server may attach and detach some while it waits to be confirmed: so what the source had of them
    goes now, and a revert has them connected to it anew."""
    await at_new_host(run)
    return DONE
