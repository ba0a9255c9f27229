"""Attaching a network interface: the port is made or taken and bound, plugged (isolated), given to the guest,
and wired; then it is in the server's row.

Nothing is looked at before the operation is written down (Nova's order for this one, API-8): what is wrong
with the port or the network is why its first step fails.
"""

from __future__ import annotations

import msgspec

from kilonova.errors import Conflict
from kilonova.journal.model import Done, Operation, Run, Step, Wait
from kilonova.model.context import RequestContext
from kilonova.model.port import Vif
from kilonova.operations import interfaces
from kilonova.operations.begin import begin
from kilonova.operations.cloud import Cloud
from kilonova.operations.steps import (
    agent_of,
    apply,
    command,
    host_of,
    instance_of,
    plainly,
    until_wired_at,
)
from kilonova.services.network.port import OnePort


class AttachParams(msgspec.Struct, frozen=True, kw_only=True):
    """See `OnePort`."""

    port_id: str
    taken: bool = False
    network_id: str | None = None
    fixed_ip: str | None = None
    tag: str | None = None
    privileged: bool = False
    external: bool = False


async def submit(cloud: Cloud, context: RequestContext, uuid: str, params: AttachParams) -> int:
    """The number of the action.  Raises NotFound, or Conflict when the server's state does not allow it."""
    return await begin(cloud, context, uuid, "attach_interface", ATTACH_INTERFACE, params)


async def _port(run: Run) -> Done:
    """Raises what is wrong with the request in kind, as the user is told it."""
    cloud: Cloud = run.cloud
    params: AttachParams = run.params
    instance = await instance_of(run)
    if await interfaces.has_port(run, params.port_id):
        raise Conflict(f"Port {params.port_id} is still in use.")
    request = OnePort(
        instance_uuid=instance.uuid,
        project_id=instance.project_id,
        hostname=instance.hostname,
        availability_zone=instance.availability_zone or "",
        **msgspec.structs.asdict(params),
    )
    host = await interfaces.host_of_server(run)
    details = await cloud.scheduler.details(host)
    with plainly():
        vif = await cloud.network.attach(request, host, details)
    return Done(output=msgspec.to_builtins(vif))


async def _release(run: Run) -> Done:
    """Unless it was refused because the server had it before."""
    made = run.output("port") is not None
    if made or not await interfaces.has_port(run, run.params.port_id):
        await run.cloud.network.release(run.instance_uuid, run.params.port_id)
    return Done()


def _vif(run: Run) -> Vif:
    return msgspec.convert(run.output("port"), Vif)


async def _plug(run: Run) -> Done:
    host = await interfaces.host_of_server(run)
    guest = msgspec.structs.replace(await interfaces.bare_guest(run), vifs=(_vif(run),))
    await agent_of(run, host).plug(command(run, "plug"), guest)
    return Done(host=host)


async def _unplug(run: Run) -> Done:
    return await interfaces.unplugged(run, _vif(run))


async def _attach(run: Run) -> Done:
    return await interfaces.attached(run, _vif(run), "attach")


async def _detach(run: Run) -> Done:
    return await interfaces.detached(run, _vif(run), "detach")


async def _wired(run: Run) -> Done | Wait:
    host = await interfaces.host_of_server(run)
    return await until_wired_at(run, host, (_vif(run),), only=True)


async def _note(run: Run) -> Done:
    return await interfaces.noted(run)


ATTACH_INTERFACE = Operation(
    name="attach_interface",
    steps=(
        Step("port", _port, _release, event="compute_allocate_port"),
        Step("plug", _plug, _unplug, event="compute_plug_vifs"),
        Step("attach", _attach, _detach, event="compute_attach_interface"),
        Step("wired", _wired, event="compute_wait_for_vif_plugged"),
        Step("note", _note, event="compute_refresh_network_info"),
    ),
    params=AttachParams,
    apply=apply,
    failed=interfaces.failed,
    deadline=600.0,
    host_of=host_of,
)
