"""Creating a server: place, ports, prepare, plug, start, wired, resume.

A failure that concerns one host unwinds to ``place`` and takes another; any other failure undoes
everything and leaves the server in ``error`` with a fault that explains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from kilonova.db import hosts
from kilonova.db.engine import Tx
from kilonova.journal.model import Done, Operation, Run, Step, StoredError
from kilonova.model.instance import Instance
from kilonova.model.port import RequestedNetwork
from kilonova.model.states import Task, Vm
from kilonova.operations import host_steps
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import another_if_down
from kilonova.operations.placing import place, request_of
from kilonova.operations.steps import (
    agent_of,
    apply,
    command,
    guest_of,
    host_of,
    in_error,
    instance_of,
    most_hosts,
    with_all_tried,
)
from kilonova.scheduler.request import ServerRequest
from kilonova.services.network.port import PortRequest


class CreateParams(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps need and the server's row does not hold."""

    networks: tuple[RequestedNetwork, ...] | None = None
    auto_network: bool = False
    forced_host: str | None = None
    forced_node: str | None = None
    requested_host: str | None = None
    requested_node: str | None = None
    files: tuple[tuple[str, bytes], ...] = ()  # injected, up to 2.56


def request_for(cloud: Cloud, instance: Instance, params: CreateParams, **more: Any) -> ServerRequest:
    """What the scheduler is asked for a new server; NUMA cells should be near its networks."""
    request = request_of(
        cloud,
        instance,
        forced_host=params.forced_host,
        forced_node=params.forced_node,
        requested_host=params.requested_host,
        requested_node=params.requested_node,
        **more,
    )
    if request.special.numa is None:
        return request
    near = cloud.network.physical_networks(params.networks)
    return replace(request, special=replace(request.special, physical_networks=near))


async def _place(run: Run) -> Done:
    cloud: Cloud = run.cloud
    instance = await instance_of(run)
    if run.action.epoch > 1 or run.known.get("placing"):
        await cloud.claims.release_server(instance)  # what a former try may have claimed
    run.known["placing"] = True
    request = request_for(cloud, instance, run.params, tried=run.action.outputs.get("tried", {}))
    selection = await place(cloud, instance, request)
    return Done(
        output={"host": selection.host, "rejected": selection.reasons, "removed": selection.removed},
        changes={
            "host": selection.host,
            "node": selection.node,
            "availability_zone": selection.availability_zone,
            "task_state": Task.NETWORKING,
        },
    )


async def _unplace(run: Run) -> Done:
    cloud: Cloud = run.cloud
    instance = await instance_of(run)
    await cloud.claims.release_server(instance, also=_failing_on(instance.host))
    nowhere = {"host": None, "node": None, "availability_zone": instance.pinned_availability_zone}
    return Done(changes={**nowhere, "task_state": Task.SCHEDULING})


def _failing_on(host: str | None) -> Callable[[Tx], None]:
    """Count a build that came to nothing against the host that had it, whatever the reason (BR-2, BR-3)."""

    def count(tx: Tx) -> None:
        if host is not None:
            hosts.count_failed_build(tx, host)

    return count


async def _ports(run: Run) -> Done:
    cloud: Cloud = run.cloud
    instance = await instance_of(run)
    assert instance.host is not None
    request = PortRequest(
        instance_uuid=instance.uuid,
        project_id=instance.project_id,
        hostname=instance.hostname,
        networks=run.params.networks,
        auto=run.params.auto_network,
        security_groups=instance.security_groups or ("default",),
        availability_zone=instance.availability_zone or "",
    )
    details = await cloud.scheduler.details(instance.host)
    vifs = await cloud.network.allocate(request, instance.host, details)
    changes: dict[str, Any] = {"vifs": vifs, "task_state": Task.SPAWNING}
    if any(each.port_id for each in run.params.networks or ()):  # the user's ports are in groups of their own
        changes["security_groups"] = await cloud.network.security_groups(instance.uuid)
    return Done(changes=changes)


async def _free_ports(run: Run) -> Done:
    await run.cloud.network.deallocate(run.instance_uuid)
    return Done(changes={"vifs": ()})


async def _prepare(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    async with another_if_down(run, instance.host):
        await agent_of(run, instance.host).prepare(
            command(run, "prepare"), await guest_of(run, instance, run.params.files)
        )
    return Done(host=instance.host)


async def _resume(run: Run) -> Done:
    host, observed = await host_steps.resumed(run)
    await _works(run.cloud, host)
    changes: dict[str, Any] = {
        "observed": observed,
        "vm_state": Vm.ACTIVE,
        "task_state": None,
        "launched_at": run.cloud.clock.now(),
        "fault": None,
    }
    return Done(host=host, changes=changes)


async def _works(cloud: Cloud, host: str) -> None:
    """A host that was seen to fail has made a server (BR-1); of others nothing need be written."""
    if cloud.scheduler.failed_builds(host):
        await cloud.top.write(lambda tx: hosts.forget_failed_builds(tx, host))


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    """Everything is undone; the server stays to tell why, unless a delete comes after us."""
    if not error.cancelled:
        in_error(tx, run, with_all_tried(run, error))


CREATE = Operation(
    name="create",
    steps=(
        Step("place", _place, _unplace, event="conductor_schedule_and_build_instances"),
        Step("ports", _ports, _free_ports, event="compute_allocate_network"),
        Step("prepare", _prepare, host_steps.discard, event="compute_prepare_disks"),
        Step("plug", host_steps.plug, host_steps.unplug, event="compute_plug_vifs"),
        Step("start", host_steps.start, host_steps.destroy, event="compute__do_build_and_run_instance"),
        Step("wired", host_steps.wired, event="compute_wait_for_vif_plugged"),
        Step("resume", _resume, event="compute_resume_guest"),
    ),
    params=CreateParams,
    apply=apply,
    failed=_failed,
    deadline=600.0,
    retry_from="place",
    max_rounds=lambda run: most_hosts(run, run.params.forced_host),
    host_of=host_of,
)
