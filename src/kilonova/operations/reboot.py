"""Rebooting a server, softly (the guest restarts itself) or hard (power off, everything made anew, on)."""

from __future__ import annotations

import msgspec

from kilonova.db.engine import Tx
from kilonova.errors import HostFault
from kilonova.journal.model import Done, Operation, Run, Step, StoredError
from kilonova.model.context import RequestContext
from kilonova.model.states import Power, Vm
from kilonova.operations.begin import begin
from kilonova.operations.cloud import Cloud
from kilonova.operations.steps import (
    agent_of,
    apply,
    command,
    guest_of,
    host_of,
    idle_again,
    in_error,
    instance_of,
)


class RebootParams(msgspec.Struct, frozen=True):
    hard: bool


async def submit(cloud: Cloud, context: RequestContext, uuid: str, *, hard: bool) -> None:
    """Raises NotFound, or Conflict when the server's state does not allow this kind."""
    await begin(cloud, context, uuid, "reboot_hard" if hard else "reboot", REBOOT, RebootParams(hard=hard))


async def _reboot(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    agent = agent_of(run, instance.host)
    timeout = float(run.cloud.settings.number("wait_soft_reboot_seconds", "libvirt"))
    try:
        observed = await agent.reboot(
            command(run, "reboot"), await guest_of(run, instance), hard=run.params.hard, timeout=timeout
        )
    except HostFault:
        run.known["after"] = await agent.observe(instance.uuid)
        raise
    return Done(host=instance.host, changes={"observed": observed, "vm_state": Vm.ACTIVE, "task_state": None})


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    """A guest that still runs stays active; one that does not is in error (Nova's rule)."""
    after = run.known.get("after")
    if after is not None and after.power_state == Power.RUNNING:
        idle_again(tx, run, error)
        return
    in_error(tx, run, error)


REBOOT = Operation(
    name="reboot",
    steps=(Step("reboot", _reboot, event="compute_reboot_instance"),),
    params=RebootParams,
    apply=apply,
    failed=_failed,
    deadline=900.0,
    host_of=host_of,
)
