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
from kilonova.errors import HostFault
from kilonova.journal.model import DONE, Done, Operation, Run, Step, StoredError, Wait
from kilonova.model.instance import Instance
from kilonova.model.port import RequestedNetwork
from kilonova.model.states import Power, Task, Vm
from kilonova.operations.cloud import Cloud
from kilonova.operations.placing import place, request_of
from kilonova.operations.steps import agent_of, apply, command, fault_of, guest_of, host_of, instance_of
from kilonova.scheduler.request import ServerRequest
from kilonova.services.network.port import PortRequest

VIF_PLUGGED = "network-vif-plugged"


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
    await agent_of(run, instance.host).prepare(
        command(run, "prepare"), await guest_of(run, instance, run.params.files)
    )
    return Done(host=instance.host)


async def _discard(run: Run) -> Done:
    instance = await instance_of(run)
    if instance.host is not None:
        await agent_of(run, instance.host).discard(command(run, "discard"), instance.uuid)
    return Done(host=instance.host)


async def _plug(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    await agent_of(run, instance.host).plug(command(run, "plug"), await guest_of(run, instance))
    return Done(host=instance.host)


async def _unplug(run: Run) -> Done:
    instance = await instance_of(run)
    if instance.host is not None:
        agent = agent_of(run, instance.host)
        await agent.unplug(command(run, "unplug"), instance.uuid, instance.vifs)
    journal = run.cloud.journal
    return Done(host=instance.host, write=lambda tx: journal.drop_signals(tx, run.instance_uuid))


async def _start(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    guest = await guest_of(run, instance)
    observed = await agent_of(run, instance.host).start(command(run, "start"), guest, paused=True)
    return Done(host=instance.host, changes={"observed": observed})


async def _destroy(run: Run) -> Done:
    instance = await instance_of(run)
    if instance.host is not None:
        await agent_of(run, instance.host).destroy(command(run, "destroy"), instance.uuid)
    return Done(host=instance.host, changes={"power_state": Power.NOSTATE})


async def _wired(run: Run) -> Done | Wait:
    cloud: Cloud = run.cloud
    instance = await instance_of(run)
    expected = frozenset((VIF_PLUGGED, vif.port_id) for vif in instance.vifs)
    timeout = cloud.settings.number("vif_plugging_timeout")
    if not expected or timeout == 0:
        return DONE
    fatal = cloud.settings.flag("vif_plugging_is_fatal")

    def late(missing: set[tuple[str, str]]) -> Exception | None:
        if not fatal:
            return None
        ports = ", ".join(sorted(tag for _, tag in missing))
        return HostFault(f"The network service did not wire the ports {ports} within {timeout} seconds.")

    return Wait(signals=expected, timeout=timeout, late=late)


async def _resume(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    observed = await agent_of(run, instance.host).resume(command(run, "resume"), instance.uuid)
    await _works(run.cloud, instance.host)
    changes: dict[str, Any] = {
        "observed": observed,
        "vm_state": Vm.ACTIVE,
        "task_state": None,
        "launched_at": run.cloud.clock.now(),
        "fault": None,
    }
    return Done(host=instance.host, changes=changes)


async def _works(cloud: Cloud, host: str) -> None:
    """A host that was seen to fail has made a server (BR-1); of others nothing need be written."""
    if cloud.scheduler.failed_builds(host):
        await cloud.top.write(lambda tx: hosts.forget_failed_builds(tx, host))


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    """Everything is undone; the server stays to tell why, unless a delete comes after us."""
    if not error.cancelled:
        fault = fault_of(_with_all_tried(run, error), run.cloud.clock.now())
        apply(tx, run, {"vm_state": Vm.ERROR, "task_state": None, "fault": fault})


def _with_all_tried(run: Run, error: StoredError) -> StoredError:
    """When the last of several hosts has failed, the user hears of all of them."""
    tried: dict[str, str] = run.action.outputs.get("tried", {})
    if not tried or error.reasons or error.kind != HostFault.__name__:
        return error
    reasons = {**tried, str(error.host): error.message}
    message = f"Exceeded maximum number of retries: {len(reasons)} hosts were tried."
    return msgspec.structs.replace(error, message=message, reasons=reasons)


def _rounds(run: Run) -> int:
    """How many hosts may be tried; a forced host is the only one."""
    return 1 if run.params.forced_host else int(run.cloud.settings.number("max_attempts", "scheduler"))


CREATE = Operation(
    name="create",
    steps=(
        Step("place", _place, _unplace, event="conductor_schedule_and_build_instances"),
        Step("ports", _ports, _free_ports, event="compute_allocate_network"),
        Step("prepare", _prepare, _discard, event="compute_prepare_disks"),
        Step("plug", _plug, _unplug, event="compute_plug_vifs"),
        Step("start", _start, _destroy, event="compute__do_build_and_run_instance"),
        Step("wired", _wired, event="compute_wait_for_vif_plugged"),
        Step("resume", _resume, event="compute_resume_guest"),
    ),
    params=CreateParams,
    apply=apply,
    failed=_failed,
    deadline=600.0,
    retry_from="place",
    max_rounds=_rounds,
    host_of=host_of,
)
