"""What an agent sees of a guest, taken over: Nova's power synchronisation.

The recorded power_state is corrected in every case; the vm_state only of a server that is idle, by Nova's
table: a guest that went off by itself is stopped, one that runs though it was stopped is stopped again.
"""

from __future__ import annotations

import structlog

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.model.context import RequestContext
from kilonova.model.states import Power, Task, Vm
from kilonova.operations.cloud import Cloud
from kilonova.operations.stop import STOP, StopParams
from kilonova.rpc.messages import Observed

log = structlog.get_logger("kilonova.power")

_OFF = (Power.SHUTDOWN, Power.CRASHED, Power.SUSPENDED)
_ON = (Power.RUNNING, Power.PAUSED, Power.SUSPENDED)


async def observed(cloud: Cloud, report: Observed) -> None:
    """Take over a report; one that is older than what is known changes nothing."""

    def write(tx: Tx) -> None:
        if not instances.observe(tx, report.uuid, report.power_state, report.generation):
            return
        instance = instances.show(tx, report.uuid)
        if instance is None or instance.task_state is not None:
            return
        went_off = instance.vm_state == Vm.ACTIVE and report.power_state in _OFF
        runs = instance.vm_state == Vm.STOPPED and report.power_state in _ON
        if not (went_off or runs):
            return
        log.warning(
            "power state differs from what is intended; the server is stopped",
            instance=report.uuid,
            vm_state=instance.vm_state,
            power_state=report.power_state,
        )
        instances.update(tx, report.uuid, expect_task=None, task_state=Task.POWERING_OFF)
        # Nova too lets the API stop such a server, so that users find an action that explains it.
        context = RequestContext(
            request_id=f"req-{cloud.new_uuid()}", user_id=instance.user_id, project_id=instance.project_id
        )
        cloud.journal.submit(tx, context, STOP, report.uuid, "stop", StopParams(clean=False))

    await cloud.db.write(write)
