"""Starting a stopped server: its ports are plugged again, in case the host has been off, and it runs."""

from __future__ import annotations

from kilonova.journal.model import Done, Operation, Run, Step
from kilonova.model.context import RequestContext
from kilonova.model.states import Vm
from kilonova.operations.begin import begin
from kilonova.operations.cloud import Cloud
from kilonova.operations.steps import (
    NoParams,
    agent_of,
    apply,
    command,
    guest_of,
    host_of,
    idle_again,
    instance_of,
)


async def submit(cloud: Cloud, context: RequestContext, uuid: str) -> None:
    """Raises NotFound, or Conflict when the server is not stopped."""
    await begin(cloud, context, uuid, "start", START, NoParams())


async def _plug(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    await agent_of(run, instance.host).plug(command(run, "plug"), await guest_of(run, instance))
    return Done(host=instance.host)


async def _power_on(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    guest = await guest_of(run, instance)
    observed = await agent_of(run, instance.host).start(command(run, "power_on"), guest, paused=False)
    return Done(host=instance.host, changes={"observed": observed, "vm_state": Vm.ACTIVE, "task_state": None})


START = Operation(
    name="start",
    steps=(
        Step("plug", _plug, event="compute_plug_vifs"),
        Step("power_on", _power_on, event="compute_start_instance"),
    ),
    params=NoParams,
    apply=apply,
    failed=idle_again,
    deadline=600.0,
    host_of=host_of,
)
