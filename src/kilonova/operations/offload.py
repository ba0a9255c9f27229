"""Taking a shelved server off its host: what remains are its image, its ports and its row.

Until its files are removed nothing is lost, and a failure leaves it shelved where it is; from then on there
is only forward.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog

from kilonova.clock import SECOND, parse_iso
from kilonova.db import instances
from kilonova.errors import Conflict, NotFound
from kilonova.journal.model import DONE, Done, Kind, Operation, Run, Step
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.states import Power, Vm
from kilonova.operations.begin import begin
from kilonova.operations.cells import in_each_cell
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import undone_at
from kilonova.operations.shelved_image import SHELVED_AT
from kilonova.operations.steps import NoParams, agent_of, apply, command, host_of, idle_again, instance_of
from kilonova.operations.volumes import disconnected, seconds_kept, volumes_of
from kilonova.rpc.host import HostAgent

log = structlog.get_logger("kilonova.shelve")


async def submit(cloud: Cloud, context: RequestContext, uuid: str) -> None:
    """Raises NotFound, or Conflict when the server is not shelved on a host."""
    await begin(cloud, context, uuid, "shelve_offload", OFFLOAD, NoParams())


async def _destroy(run: Run) -> Done:
    done = await _at_host(run, lambda agent, instance: agent.destroy(command(run, "destroy"), instance.uuid))
    done.changes = {"power_state": Power.NOSTATE}
    return done


async def _unplug(run: Run) -> Done:
    return await _at_host(
        run, lambda agent, instance: agent.unplug(command(run, "unplug"), instance.uuid, instance.vifs)
    )


async def _discard(run: Run) -> Done:
    return await _at_host(run, lambda agent, instance: agent.discard(command(run, "discard"), instance.uuid))


async def _at_host(run: Run, verb: Callable[[HostAgent, Instance], Awaitable[None]]) -> Done:
    """Its image has all that counts: a host that is down has the rest taken from it when it is back."""
    instance = await instance_of(run)
    host = instance.host
    assert host is not None

    async def ask() -> None:
        await verb(agent_of(run, host), instance)

    return await undone_at(run, host, ask, instance.vifs)


async def _unbind(run: Run) -> Done:
    """Its volumes stay its own and in use, by attachments that are to no host (MG-SHV-3)."""
    cloud: Cloud = run.cloud
    volumes = await volumes_of(run)
    changes = {"vifs": await cloud.network.unbind(run.instance_uuid)}
    if not volumes:
        return Done(changes=changes)
    nowhere = await disconnected(run, volumes)
    return Done(changes={**changes, "volumes": nowhere}, output=msgspec.to_builtins(volumes))


async def _release(run: Run) -> Done:
    """Before the server's state says so (MG-SHV-3): who sees it offloaded finds the room free."""
    cloud: Cloud = run.cloud
    await seconds_kept(run, "unbind")
    await cloud.claims.release_server(await instance_of(run))
    return DONE


async def _offloaded(run: Run) -> Done:
    journal = run.cloud.journal
    nowhere = {"host": None, "node": None, "availability_zone": None, "power_state": Power.NOSTATE}
    return Done(
        changes={"vm_state": Vm.SHELVED_OFFLOADED, "task_state": None, "progress": 0, **nowhere},
        write=lambda tx: journal.drop_signals(tx, run.instance_uuid),
    )


LEAVE_STEPS = (
    Step("destroy", _destroy, event="compute_destroy_guest"),
    Step("unplug", _unplug, event="compute_unplug_vifs"),
    Step("discard", _discard, kind=Kind.RETRIABLE, event="compute_delete_disks"),
    Step("unbind", _unbind, kind=Kind.RETRIABLE, event="compute_unbind_ports"),
    Step("release", _release, kind=Kind.RETRIABLE, event="conductor_release_allocations"),
    Step("offloaded", _offloaded, kind=Kind.RETRIABLE, event="compute_shelve_offload_instance"),
)

OFFLOAD = Operation(
    name="shelve_offload",
    steps=LEAVE_STEPS,
    params=NoParams,
    apply=apply,
    failed=idle_again,
    deadline=600.0,
    host_of=host_of,
)


async def offload_all_aged(cloud: Cloud) -> None:
    await in_each_cell(cloud, offload_aged, "servers that have been shelved for long")


async def offload_aged(cloud: Cloud) -> int:
    """Offload the servers of a cell that have been shelved for longer than ``shelved_offload_time``
    (MG-SHV-2); how many that are."""
    limit = cloud.settings.number("shelved_offload_time")
    if limit <= 0:
        return 0  # at once, when they are shelved; or never
    before = cloud.clock.now() - limit * SECOND
    begun = 0
    for instance in await cloud.db.read(instances.shelved):
        if instance.task_state is None and _since(instance) <= before:
            begun += await _offload(cloud, instance)
    return begun


def _since(instance: Instance) -> int:
    """When it was shelved; one that does not say so has been for long."""
    said = instance.system_metadata.get(SHELVED_AT)
    return 0 if said is None else parse_iso(said)


async def _offload(cloud: Cloud, instance: Instance) -> bool:
    context = RequestContext(
        request_id=f"req-{cloud.new_uuid()}",
        user_id=instance.user_id,
        project_id=instance.project_id,
        roles=frozenset({"admin"}),
    )
    try:
        await submit(cloud, context, instance.uuid)
    except (Conflict, NotFound) as error:  # somebody else was faster: another controller, or a user
        log.info("a shelved server is not offloaded now", instance=instance.uuid, reason=str(error))
        return False
    return True
