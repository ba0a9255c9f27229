"""What an agent sees of a guest, taken over: Nova's power synchronisation.

The recorded power_state is corrected in every case; the vm_state only of a server that is idle, by Nova's
table: a guest that went off by itself is stopped, one that runs though it was stopped is stopped again.
"""

from __future__ import annotations

import structlog

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import KilonovaError
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.states import Power, Task, Vm
from kilonova.operations.cloud import Cloud
from kilonova.operations.resume_guest import RESUME_GUEST
from kilonova.operations.stop import STOP, StopParams
from kilonova.rpc.messages import Observed

log = structlog.get_logger("kilonova.power")

WENT_OFF = {
    Vm.ACTIVE: frozenset({Power.SHUTDOWN, Power.CRASHED, Power.SUSPENDED}),
    Vm.PAUSED: frozenset({Power.SHUTDOWN, Power.CRASHED}),
}
RUNS = {Vm.STOPPED: frozenset({Power.RUNNING, Power.PAUSED, Power.SUSPENDED})}
STOPPED_FOR = {**WENT_OFF, **RUNS}
"""vm_state -> the power states for which an idle server is stopped."""

WARNED_OF = {Vm.ACTIVE: frozenset({Power.NOSTATE, Power.PAUSED})}
"""vm_state -> the power states that are not as intended, and for which nothing is done."""


async def observed(cloud: Cloud, report: Observed, host: str) -> None:
    """Take over a report of a host; one that is older than what is known changes nothing, nor does that of a
    host which the server has left meanwhile."""

    def write(tx: Tx) -> None:
        state = instances.observe(tx, report.uuid, report.power_state, report.generation, host=host)
        if state is None or state[1] is not None or not _differs(state[0], report.power_state):
            return
        instance = instances.show(tx, report.uuid)
        if instance is not None:
            _agree(tx, cloud, instance, STOPPED_FOR)

    await cloud.db.write(write)


def after_operation(tx: Tx, cloud: Cloud, uuid: str) -> None:
    """An operation ends in this transaction: what was seen while it ran is judged now."""
    instance = instances.show(tx, uuid)
    if instance is not None:
        _agree(tx, cloud, instance, WENT_OFF)


def _agree(tx: Tx, cloud: Cloud, instance: Instance, stopped_for: dict[str, frozenset[int]]) -> None:
    """Stop a server that is idle and whose power is one of those for its vm_state."""
    power = instance.power_state
    if instance.task_state is not None:
        return
    if power in WARNED_OF.get(instance.vm_state, ()):
        log.warning("power state differs from what is intended", instance=instance.uuid, power_state=power)
    if power not in stopped_for.get(instance.vm_state, ()):
        return
    if cloud.journal.awaits(tx, instance.uuid, RESUME_GUEST.name):  # it is off because its host was
        return
    log.warning(
        "power state differs from what is intended; the server is stopped",
        instance=instance.uuid,
        vm_state=instance.vm_state,
        power_state=power,
    )
    instances.update(tx, instance.uuid, expect_task=None, task_state=Task.POWERING_OFF, progress=0)
    # Nova too lets the API stop such a server, so that users find an action that explains it.
    context = RequestContext(
        request_id=f"req-{cloud.new_uuid()}", user_id=instance.user_id, project_id=instance.project_id
    )
    cloud.journal.submit(tx, context, STOP, instance.uuid, "stop", StopParams(clean=False))


async def synchronise(cloud: Cloud, host: str) -> None:
    """Look at every idle server of a host: for what no event has told, a guest that is gone included."""
    agent = cloud.hosts.agent(host)
    for instance in await cloud.db.read(lambda tx: instances.by_host(tx, host)):
        if instance.task_state is not None:
            continue
        try:
            seen = await agent.observe(instance.uuid)
        except KilonovaError as error:
            log.warning("guest cannot be looked at", instance=instance.uuid, host=host, error=str(error))
            continue
        if seen.power_state != instance.power_state or _differs(instance.vm_state, instance.power_state):
            await observed(cloud, seen, host)


def _differs(vm_state: str, power_state: int) -> bool:
    return any(power_state in table.get(vm_state, ()) for table in (STOPPED_FOR, WARNED_OF))
