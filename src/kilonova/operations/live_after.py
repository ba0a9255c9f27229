"""What follows when the guest goes on at its destination: repeated until it has succeeded.

Nothing here can lose the guest: what the destination cannot finish is noted with the server, and what a
source that is down still has it is rid of when it is back.
"""

from __future__ import annotations

from typing import Any

import structlog
from msgspec.structs import replace

from kilonova.db import migration_contexts
from kilonova.db.engine import Tx
from kilonova.errors import HostFault, Unreachable
from kilonova.journal.model import Done, Run
from kilonova.model.instance import Fault
from kilonova.model.migration import Status
from kilonova.model.states import Vm
from kilonova.operations import live_queue
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import is_down
from kilonova.operations.live_params import plan_of
from kilonova.operations.moving import context_of, leave_to, migration_of, mover_of, new_guest, note
from kilonova.operations.steps import command, instance_of
from kilonova.operations.volumes import at_new_host

log = structlog.get_logger("kilonova.live")


async def switch(run: Run) -> Done:
    """The ports, and the server's place, are the destination's (MG-LM-25, MG-LM-27)."""
    cloud: Cloud = run.cloud
    placed, context = run.output("place"), await context_of(run)
    vifs = await cloud.network.activate_bindings(run.instance_uuid, placed["host"])
    changes: dict[str, Any] = {
        "host": placed["host"],
        "node": placed["node"],
        "availability_zone": placed["zone"],
        "vifs": vifs,
        "volumes": context.new_volumes,
    }
    return Done(changes=changes, host=placed["host"])


async def settle(run: Run) -> Done:
    """The destination has it for good; if not, the server is there all the same (MG-LM-26, MG-LM-27)."""
    instance = await instance_of(run)
    destination = str(run.output("place")["host"])
    guest = await new_guest(run, instance.vifs)
    try:
        seen = await mover_of(run, destination).settle_live(command(run, "settle"), guest)
    except HostFault as error:
        log.error(
            "a guest has come and is not settled", instance=instance.uuid, host=destination, exc_info=True
        )
        fault = Fault(code=500, message=str(error)[:255], created=run.cloud.clock.now())
        return Done(host=destination, changes={"vm_state": Vm.ERROR, "fault": fault})
    except Unreachable:
        if not await is_down(run, destination):
            raise
        log.error("the destination of a guest has gone down", instance=instance.uuid, host=destination)
        return Done(host=destination)
    # Another host counts its looks from another number: the first of them goes before all of the old ones.
    changes = {"power_state": seen.power_state, "power_generation": seen.generation}
    return Done(host=destination, changes=changes)


async def leave(run: Run) -> Done:
    """Nothing of the guest is left at the source, with its ports as they were there (OVS-21)."""
    context = await context_of(run)
    source = str((await migration_of(run)).source_compute)
    plan = replace(plan_of(run, "prepare"), old_vifs=context.old_vifs, new_vifs=context.new_vifs)
    try:
        await mover_of(run, source).leave_live(command(run, "leave"), run.instance_uuid, plan)
    except Unreachable:
        if not await is_down(run, source):
            raise

        def later(tx: Tx) -> None:
            leave_to(tx, run, source, context.old_vifs, keep_files=context.shared)

        return Done(output={"later": True}, write=later, host=source)
    return Done(host=source)


async def finish(run: Run) -> Done:
    """The old side is given back, and the migration is over."""
    cloud: Cloud = run.cloud
    migration = await migration_of(run)
    source = str(migration.source_compute)
    await cloud.network.remove_bindings(run.instance_uuid, source)
    await at_new_host(run)
    if not (run.output("leave") or {}).get("later"):  # else what it holds goes with what is left there
        await cloud.claims.drop_old(migration.uuid)

    def write(tx: Tx) -> None:
        live_queue.give(tx, cloud, source, ended=migration.uuid)  # first: its lock comes before ours
        note(tx, run, status=Status.COMPLETED)
        migration_contexts.drop(tx, migration.uuid)

    return Done(write=write, changes={"task_state": None, "progress": 0})
