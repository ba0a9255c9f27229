"""The steps of an evacuation."""

from __future__ import annotations

from typing import Any

import structlog
from msgspec.structs import replace

from kilonova.db import leftovers, migration_contexts
from kilonova.db.engine import Tx
from kilonova.errors import Failed, HostFault, KilonovaError, TryAgain, Unreachable
from kilonova.journal.model import DONE, Done, Run, Wait
from kilonova.model.instance import Fault
from kilonova.model.migration import Status
from kilonova.model.port import Vif
from kilonova.model.states import Power, Task, Vm
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import another_if_down, clear, is_down, is_heard, undone_at
from kilonova.operations.moving import (
    MoveParams,
    context_of,
    leave_to,
    migration_of,
    mover_of,
    new_guest,
    note,
    place_elsewhere,
    placed,
    remember,
    unplaced,
)
from kilonova.operations.steps import agent_of, command, instance_of, until_wired_at
from kilonova.operations.volumes import at_new_host, brought
from kilonova.rpc.messages import Observed
from kilonova.rpc.moves import Presence

log = structlog.get_logger("kilonova.evacuate")

EVACUATING = frozenset({Task.REBUILDING, Task.REBUILD_BLOCK_DEVICE_MAPPING, Task.REBUILD_SPAWNING})


class EvacuateParams(MoveParams, frozen=True, kw_only=True):
    """``on_shared_storage``: what the user says of the server's files; ``stop``: it is not to run there."""

    on_shared_storage: bool | None = None
    stop: bool = False


class NotDown(Failed):
    """The host that was to be evacuated is up, and has its guests: nothing is wrong with the server."""


# ---- who is concerned ----


def concerned(run: Run) -> str | None:
    """The host that steps work at: the one that was chosen."""
    chosen: str | None = (run.output("place") or {}).get("host")
    return chosen


async def _there(run: Run) -> str:
    """The host that was chosen."""
    migration = await migration_of(run)
    if migration.dest_compute is None:
        raise Failed(f"Migration {migration.uuid} has lost its destination.")
    return migration.dest_compute


async def _vifs(run: Run) -> tuple[Vif, ...]:
    """The ports as they are bound at the host that was chosen."""
    return (await context_of(run)).new_vifs


async def _check_down(run: Run) -> None:
    migration, instance = await migration_of(run), await instance_of(run)
    host = str(migration.source_compute)
    if instance.host != host:
        raise NotDown(f"The server has moved from {host} to {instance.host} meanwhile.")
    if await is_down(run, host):
        return
    if await is_heard(run.cloud, host):
        raise NotDown(f"The host {host} is up again: its servers are not evacuated.")
    raise TryAgain(f"Whether the host {host} is down is not known since an outage on our side.")


# ---- place ----


async def place(run: Run) -> Done:
    await migration_of(run)
    await _check_down(run)
    return await placed(run, await place_elsewhere(run), status=Status.PRE_MIGRATING)


async def unplace(run: Run) -> Done:
    return await unplaced(run, status=Status.ACCEPTED)


# ---- what the new host needs ----


async def look(run: Run) -> Done:
    """Whether the server's files are there already, on storage that hosts share.  Raises HostFault where a
    guest of it is, Failed where the user has said otherwise (InvalidSharedStorage)."""
    host = await _there(run)
    async with another_if_down(run, host):
        found = await mover_of(run, host).locate(run.instance_uuid)
    if found.presence != Presence.ABSENT:
        raise HostFault(f"Instance {run.instance_uuid} already exists on {host}.")
    said = run.params.on_shared_storage
    if said is not None and said != found.files:
        where = "are" if found.files else "are not"
        raise Failed(f"Invalid shared storage: the files of the server {where} on {host} already.")
    return Done(output={"shared": found.files}, host=host)


def _is_shared(run: Run) -> bool:
    return bool((run.output("look") or {}).get("shared"))


async def bring_volumes(run: Run) -> Done:
    """New attachments, which are to replace those of the dead host (MG-EVC-6)."""
    source = str((await migration_of(run)).source_compute)
    return await brought(run, source, await _there(run), another_if_down)


async def bind(run: Run) -> Done:
    cloud: Cloud = run.cloud
    host, context = await _there(run), await context_of(run)
    details = await cloud.scheduler.details(host)
    vifs = await cloud.network.add_bindings(run.instance_uuid, host, details)
    remembered = replace(context, new_vifs=vifs, shared=_is_shared(run))
    return Done(
        changes={"task_state": Task.REBUILD_BLOCK_DEVICE_MAPPING},
        write=lambda tx: remember(tx, run, remembered),
    )


async def unbind(run: Run) -> Done:
    host, context = await _there(run), await context_of(run)
    await run.cloud.network.remove_bindings(run.instance_uuid, host)
    return Done(
        changes={"task_state": Task.REBUILDING},
        write=lambda tx: remember(tx, run, replace(context, new_vifs=())),
    )


async def prepare(run: Run) -> Done:
    host, vifs = await _there(run), await _vifs(run)
    async with another_if_down(run, host):
        await agent_of(run, host).prepare(command(run, "prepare"), await new_guest(run, vifs))
    return Done(host=host, changes={"task_state": Task.REBUILD_SPAWNING})


async def discard(run: Run) -> Done:
    """Files on shared storage are the server's only ones."""
    host, vifs = await _there(run), await _vifs(run)
    if _is_shared(run):
        return Done(host=host)
    return await undone_at(
        run, host, lambda: agent_of(run, host).discard(command(run, "discard"), run.instance_uuid), vifs
    )


async def plug(run: Run) -> Done:
    host, vifs = await _there(run), await _vifs(run)
    async with another_if_down(run, host):
        await agent_of(run, host).plug(command(run, "plug"), await new_guest(run, vifs))
    return Done(host=host)


async def unplug(run: Run) -> Done:
    host, vifs = await _there(run), await _vifs(run)
    journal = run.cloud.journal
    return await undone_at(
        run,
        host,
        lambda: agent_of(run, host).unplug(command(run, "unplug"), run.instance_uuid, vifs),
        vifs,
        keep_files=_is_shared(run),
        also=lambda tx: journal.drop_signals(tx, run.instance_uuid),
    )


async def start(run: Run) -> Done:
    """Paused, also where it is to stay off: that its host can run it is known then."""
    host, vifs = await _there(run), await _vifs(run)
    async with another_if_down(run, host):
        await agent_of(run, host).start(command(run, "start"), await new_guest(run, vifs), paused=True)
    return Done(host=host)


async def destroy(run: Run) -> Done:
    host, vifs = await _there(run), await _vifs(run)
    return await undone_at(
        run,
        host,
        lambda: agent_of(run, host).destroy(command(run, "destroy"), run.instance_uuid),
        vifs,
        keep_files=_is_shared(run),
    )


async def wired(run: Run) -> Done | Wait:
    return await until_wired_at(run, await _there(run), await _vifs(run))


# ---- the point of no return ----


async def still_down(run: Run) -> Done:
    await _check_down(run)
    return DONE


async def switch(run: Run) -> Done:
    """From this commit on the server is on its new host, and the old one owes what it has of it."""
    cloud: Cloud = run.cloud
    migration, context = await migration_of(run), await context_of(run)
    old, new = str(migration.source_compute), await _there(run)
    vifs = await cloud.network.activate_bindings(run.instance_uuid, new)
    await cloud.network.remove_bindings(run.instance_uuid, old)  # it is not to be wired there any more

    def write(tx: Tx) -> None:
        leave_to(tx, run, old, context.old_vifs, keep_files=context.shared)
        note(tx, run, status=Status.DONE)

    changes: dict[str, Any] = {
        "host": new,
        "node": migration.dest_node,
        "availability_zone": (run.output("place") or {}).get("zone"),
        "vifs": vifs,
        "volumes": context.new_volumes,
        "power_generation": 0,  # of another clock from now on
    }
    return Done(host=new, changes=changes, write=write)


async def fence(run: Run) -> Done:
    """An old host that gives signs of life is cleared before the new guest runs.

    Where an operator has declared it down that is tried, and not waited for: it is his word that counts.
    """
    cloud: Cloud = run.cloud
    old = str((await migration_of(run)).source_compute)
    if not await is_heard(cloud, old):
        return DONE
    leftover = await cloud.db.read(lambda tx: leftovers.find(tx, old, run.instance_uuid))
    if leftover is None:
        return DONE
    try:
        await clear(cloud, leftover)
    except KilonovaError as error:
        if not await is_down(run, old):
            raise
        log.warning("a host that is down by an operator's word was not cleared", host=old, error=str(error))
    return Done(host=old)


async def run_there(run: Run) -> Done:
    """Let the guest run, or turn it off where it is to stay so; the old host has its volumes no more."""
    done = await _let_run(run)
    await at_new_host(run)
    return done


async def _let_run(run: Run) -> Done:
    """What fails now leaves the server in error there, where it can be started or evacuated again."""
    host, cloud = await _there(run), run.cloud
    try:
        observed = await _set_going(run, host)
    except Unreachable:
        if not await is_down(run, host):
            raise
        return _over(run, host, _error(cloud, f"The host {host} has gone down."))
    except HostFault as error:
        return _over(run, host, _error(cloud, str(error)))
    on = observed.power_state == Power.RUNNING
    now = {"vm_state": Vm.ACTIVE if on else Vm.STOPPED, "launched_at": cloud.clock.now(), "fault": None}
    return _over(run, host, {"observed": observed, **now})


async def _set_going(run: Run, host: str) -> Observed:
    agent, uuid = agent_of(run, host), run.instance_uuid
    if run.params.stop or (await context_of(run)).old_vm_state == Vm.STOPPED:
        return await agent.shut_down(command(run, "run"), uuid, timeout=0.0, clean=False)
    return await agent.resume(command(run, "run"), uuid)


def _error(cloud: Cloud, message: str) -> dict[str, Any]:
    return {"vm_state": Vm.ERROR, "fault": Fault(code=500, message=message[:255], created=cloud.clock.now())}


def _over(run: Run, host: str, changes: dict[str, Any]) -> Done:
    return Done(
        host=host,
        changes={**changes, "task_state": None},
        write=lambda tx: migration_contexts.drop(tx, run.params.migration),
    )
