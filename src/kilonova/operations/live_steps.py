"""The steps of a live migration up to where the guest begins to move, each with its undo."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from kilonova.clock import SECOND
from kilonova.db import hosts
from kilonova.db import migrations as migrations_db
from kilonova.db.engine import DatabaseUnavailable, Tx
from kilonova.errors import Failed, HostFault, NoValidHost, TryAgain
from kilonova.journal.model import DONE, Done, Run, Wait
from kilonova.model.host import Host
from kilonova.model.host_resources import Wanted
from kilonova.model.instance import Instance
from kilonova.model.port import DELEGATION
from kilonova.model.states import POWER_NAMES, Power
from kilonova.operations import live_queue
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import is_down, owing, undone_at
from kilonova.operations.live_params import kept, plan_of
from kilonova.operations.live_steering import heed
from kilonova.operations.moving import (
    context_of,
    give_back_place,
    migration_of,
    mover_of,
    new_guest,
    old_guest,
    place_elsewhere,
    placed,
    remember,
    unplaced,
)
from kilonova.operations.steps import agent_of, command, instance_of, until_wired_at
from kilonova.operations.volumes import brought
from kilonova.resources.claims import is_special
from kilonova.rpc.moves import ArrivalFacts, LivePlan, LiveWish
from kilonova.scheduler.request import Selection

log = structlog.get_logger("kilonova.live")

SILENCE = (
    120  # seconds for which a host that does not answer is asked again, before there is anything to lose
)


def destination_of(run: Run) -> str | None:
    """The host that the run's server goes to, as far as this run knows."""
    placed = run.output("place")
    found: str | None = run.known.get("destination") or (placed and placed["host"])
    return found


def _destination(run: Run) -> str:
    return str(run.output("place")["host"])


@contextlib.asynccontextmanager
async def asked(run: Run, host: str, *, only: bool = False) -> AsyncIterator[None]:
    """Ask something of a host that has nothing to lose yet: another one will do if it is down or says nothing
    for long; unless it is the ``only`` one."""
    try:
        yield
    except DatabaseUnavailable:
        raise
    except TryAgain as error:
        now = run.cloud.clock.now()
        since = run.known.setdefault(f"silent {host}", now)
        if now - since < SILENCE * SECOND and not await is_down(run, host):
            raise
        message = f"Compute service of {host} is unavailable at this time: {error}"
        raise (Failed(message) if only else HostFault(message)) from error
    run.known.pop(f"silent {host}", None)


# ---- place ----


async def place(run: Run) -> Done:
    """Another host, with everything booked there (MG-LM-1 to MG-LM-3)."""
    instance = await instance_of(run)
    source = str(instance.host)
    run.known["destination"] = None
    await heed(run)
    if instance.power_state not in (Power.RUNNING, Power.PAUSED):
        power = POWER_NAMES.get(instance.power_state, instance.power_state)
        raise Failed(f"Instance {instance.uuid} in power_state {power} cannot be migrated live.")
    if await is_down(run, source):
        raise Failed(f"Compute service of {source} is unavailable at this time.")
    special = await _special(run, instance)
    if run.params.forced:
        selection = await _forced(run, instance, special or Wanted())
    else:
        more: dict[str, Any] = {} if special is None else {"special": special}
        selection = await place_elsewhere(run, **more)
    run.known["destination"] = selection.host
    await _check_kind(run, source, selection)
    return await placed(run, selection)


async def unplace(run: Run) -> Done:
    return await unplaced(run)


async def _special(run: Run, instance: Instance) -> Wanted | None:
    """What is claimed beyond allocations: no devices of the flavor, pages as they are (MG-LM-4, CL-11)."""
    if not is_special(instance):
        return None
    claims = run.cloud.claims
    wanted = claims.wanted(instance.flavor, instance.image.properties if instance.image else {})
    try:
        current = await claims.of(instance) or await claims.of(instance, run.params.migration)
        special: Wanted = claims.check_live(wanted, current)
    except HostFault as error:  # it is the server that cannot, on whatever host
        raise Failed(f"Migration pre-check error: {error}") from error
    return special


async def _host(run: Run, name: str) -> Host:
    cloud: Cloud = run.cloud
    found = await cloud.top.read(lambda tx: hosts.show(tx, name))
    if found is None:
        raise Failed(f"Compute host {name} could not be found.")
    return found


async def _forced(run: Run, instance: Instance, special: Wanted) -> Selection:
    """The host that was named, without the scheduler: what is held at the source is booked there."""
    cloud: Cloud = run.cloud
    host, source = await _host(run, run.params.host), await _host(run, str(instance.host))
    if await is_down(run, host.host):
        raise Failed(f"Compute service of {host.host} is unavailable at this time.")
    await give_back_place(run)  # what a former try may have booked
    if (reason := await _why_not(run, instance, host)) is not None:
        raise NoValidHost(f"Unable to migrate {instance.uuid} to {host.host}.", {host.host: reason})
    await cloud.claims.set_aside(instance.uuid, run.params.migration)
    held = await cloud.placement.held(run.params.migration)
    if set(held) != {source.compute_id}:
        raise Failed("A server that holds something of several providers is not forced to a host.")
    claim = await cloud.claims.claim(
        instance.uuid,
        host.compute_id,
        special,
        {host.compute_id: held[source.compute_id]},
        instance.project_id,
        instance.user_id,
        instance_uuid=instance.uuid,
    )
    if isinstance(claim, str):
        raise NoValidHost(f"Unable to migrate {instance.uuid} to {host.host}.", {host.host: claim})
    return Selection(
        host=host.host,
        node=host.hypervisor_hostname,
        compute_id=host.compute_id,
        availability_zone=host.availability_zone or cloud.settings.text("default_availability_zone"),
    )


async def _why_not(run: Run, instance: Instance, host: Host) -> str | None:
    """Why a host that is forced will not do: what it owes, or its memory, of which some must stay free."""
    cloud: Cloud = run.cloud
    if (owed := (await owing(cloud, instance.uuid)).get(host.host)) is not None:
        return owed
    for provider in await cloud.placement.providers():
        if provider.uuid == host.compute_id and "MEMORY_MB" in provider.inventories:
            memory = provider.inventories["MEMORY_MB"]
            free = int(memory.total * memory.allocation_ratio) - provider.used.get("MEMORY_MB", 0)
            if free <= instance.flavor.memory_mb:
                return f"it has {free} MiB of memory free, and {instance.flavor.memory_mb} are needed"
    return None


async def _check_kind(run: Run, source: str, selection: Selection) -> None:
    """The same hypervisor, and no older one (MG-LM-2)."""
    before, after = await _host(run, source), await _host(run, selection.host)
    if before.hypervisor_type != after.hypervisor_type:
        raise HostFault(f"The hypervisor {after.hypervisor_type} is not that of the source.")
    if after.hypervisor_version < before.hypervisor_version:
        raise HostFault("The hypervisor is older than that of the source.")


# ---- volumes ----


async def bring_volumes(run: Run) -> Done:
    """New attachments for the destination; the old ones are remembered (MG-LM-11)."""
    await heed(run)
    source = str((await instance_of(run)).host)
    return await brought(run, source, _destination(run), asked)


# ---- check ----


async def check(run: Run) -> Done:
    """Both hosts are asked whether the guest can go (MG-LM-7, MG-LM-8); the probe goes in every case."""
    instance = await instance_of(run)
    context = await context_of(run)
    source, destination = str(instance.host), _destination(run)
    wish = LiveWish(block=run.params.block, disk_over_commit=run.params.disk_over_commit)
    await heed(run)
    async with asked(run, destination):
        guest = await new_guest(run, context.old_vifs)
        facts = await mover_of(run, destination).check_arrival(command(run, "check"), guest, wish)
    try:
        _check_facts(instance, facts)
        async with asked(run, source, only=True):
            old = await old_guest(run)
            plan = await mover_of(run, source).check_departure(
                command(run, "check_departure"), old, wish, facts
            )
    finally:
        async with asked(run, destination):
            await mover_of(run, destination).remove_probe(
                command(run, "remove_probe"), instance.uuid, facts.probe
            )
    output = {"plan": kept(plan), "waits": facts.waits_for_plug, "delegates": list(facts.delegates)}
    return Done(output=output, host=destination)


def _check_facts(instance: Instance, facts: ArrivalFacts) -> None:
    if facts.cpu:
        raise HostFault(f"Unacceptable CPU info: {facts.cpu}")
    if not facts.numa and is_special(instance):
        raise HostFault("It cannot place a guest that comes live onto its NUMA cells.")


def _plan(run: Run) -> LivePlan:
    return msgspec.convert(run.output("check")["plan"], LivePlan)


# ---- bind ----


async def bind(run: Run) -> Done:
    """The ports are bound to the destination, too, not active there (MG-LM-5).

    A port whose switch port os-vif can make there says so in its binding's profile (OVS-13 to OVS-15).
    """
    cloud: Cloud = run.cloud
    context = await context_of(run)
    destination = _destination(run)
    await heed(run)
    delegates = set(run.output("check")["delegates"])
    profiles = {
        vif.port_id: {
            **{key: value for key, value in vif.profile.items() if key != DELEGATION},
            **({DELEGATION: True} if vif.port_id in delegates else {}),
        }
        for vif in context.old_vifs
    }
    details = await cloud.scheduler.details(destination)
    given = {port: profile for port, profile in profiles.items() if profile}
    vifs = await cloud.network.add_bindings(run.instance_uuid, destination, details, given)
    bound = replace(context, new_vifs=vifs, shared=_plan(run).shared_path)
    return Done(write=lambda tx: remember(tx, run, bound), host=destination)


async def unbind(run: Run) -> Done:
    """The ports are the source's again (if they were not any more), and nobody else's."""
    cloud: Cloud = run.cloud
    instance = await instance_of(run)
    if (await context_of(run)).new_vifs:
        await cloud.network.activate_bindings(instance.uuid, str(instance.host))
    await cloud.network.remove_bindings(instance.uuid, _destination(run))
    return DONE


# ---- queue ----


async def queue(run: Run) -> Done | Wait:
    """The source's turn (MG-LM-14).  It waits as a row, visible and in its order."""
    cloud: Cloud = run.cloud
    await heed(run)
    await migration_of(run)

    def take(tx: Tx) -> bool:
        migration = migrations_db.show(tx, run.params.migration)
        if migration is None:
            raise Failed(f"Migration {run.params.migration} has vanished from the database.")
        return live_queue.take(tx, cloud, migration)

    if await cloud.db.write(take):
        return DONE
    left = max((run.action.deadline_at - cloud.clock.now()) / SECOND, 1.0)

    def late(missing: set[tuple[str, str]]) -> Exception | None:
        return Failed("The host has not come to send this guest before the deadline.")

    return Wait(frozenset({(live_queue.TURN, run.params.migration)}), left, late)


# ---- prepare ----


async def prepare(run: Run) -> Done:
    """The destination gets ready: files to be filled, ports (MG-LM-12, OVS-16)."""
    context = await context_of(run)
    destination = _destination(run)
    await heed(run)
    plan = replace(_plan(run), old_vifs=context.old_vifs, new_vifs=context.new_vifs)
    async with asked(run, destination):
        guest = await new_guest(run, context.new_vifs)
        plan = await mover_of(run, destination).receive_live(command(run, "prepare"), guest, plan)
    return Done(output=kept(plan), host=destination)


async def unprepare(run: Run) -> Done:
    """Nothing of the guest is left at the destination (MG-LM-28, MG-LM-29, OVS-22)."""
    instance = await instance_of(run)
    context = await context_of(run)
    destination = _destination(run)

    async def clean() -> None:
        agent = agent_of(run, destination)
        await agent.destroy(command(run, "unprepare.destroy"), instance.uuid)
        await agent.unplug(command(run, "unprepare.unplug"), instance.uuid, context.new_vifs)
        if not context.shared:
            await agent.discard(command(run, "unprepare.discard"), instance.uuid)

    return await undone_at(run, destination, clean, context.new_vifs, keep_files=context.shared)


# ---- wired ----


async def wired(run: Run) -> Done | Wait:
    """The ports are wired at the destination before the guest comes (MG-LM-13, MG-LM-15)."""
    await heed(run)
    if not run.output("check")["waits"]:
        return DONE
    host = (await migration_of(run)).dest_compute
    assert host is not None
    return await until_wired_at(run, host, (await context_of(run)).new_vifs, Failed)


def prepared_plan(run: Run) -> LivePlan:
    return plan_of(run, "prepare")
