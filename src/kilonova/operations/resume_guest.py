"""A host was booted, and its guests that ran are to run again (Nova's resume_guests_state_on_host_boot).

Their ports are plugged anew, isolated until the layer-2 agent has wired them.  Servers that were deleted or
have moved meanwhile are not the host's any more; what it still has of them it owes (`operations.leftovers`).
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Unreachable
from kilonova.journal.model import DONE, Done, Operation, Run, Step, StoredError
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.states import Power, Task, Vm
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import is_down
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

log = structlog.get_logger("kilonova.power")

RUN = (Vm.ACTIVE, Vm.RESIZED)
"""The vm_states of servers whose guests are meant to run, if they did."""

RAN = frozenset({Power.RUNNING, Power.NOSTATE})
"""The power states of guests that ran, as far as is known."""


class ResumeGuestParams(msgspec.Struct, frozen=True):
    """The host that was booted."""

    host: str


async def resume_guests(cloud: Cloud, host: str) -> int:
    """Have those guests of a host run that ran when it went off; how many they are.  Converges.

    Of a server that is busy it is decided when what is being done to it has come to its end.
    """

    def write(tx: Tx) -> int:
        ran = [
            each for each in instances.by_host(tx, host) if each.vm_state in RUN and each.power_state in RAN
        ]
        for instance in ran:
            _take(tx, instance.uuid, host)
            context = RequestContext(
                request_id=f"req-{cloud.new_uuid()}",
                user_id=instance.user_id,
                project_id=instance.project_id,
            )
            params = ResumeGuestParams(host=host)
            cloud.journal.submit(tx, context, RESUME_GUEST, instance.uuid, "start", params)
        return len(ran)

    return await cloud.db.write(write)


def _take(tx: Tx, uuid: str, host: str) -> Instance | None:
    """The server, if it is to run on that host and nothing else is done to it."""
    found = instances.show(tx, uuid)
    if found is None or found.host != host or found.vm_state not in RUN:
        return None
    if found.task_state == Task.POWERING_ON:
        return found
    taken: dict[str, Any] = {"task_state": Task.POWERING_ON, "progress": 0}
    if not instances.update(tx, uuid, expect_task=None, expect_vm=RUN, **taken):
        return None
    return msgspec.structs.replace(found, **taken)


async def _look(run: Run) -> Done:
    """Whether it is still to run, now that its turn has come."""
    found = await run.cloud.db.write(lambda tx: _take(tx, run.instance_uuid, run.params.host))
    if found is not None:
        run.known["instance"] = found
    return Done(output={"run": found is not None}, host=run.params.host)


async def _power_on(run: Run) -> Done:
    """One that runs already is left alone."""
    if not run.output("look")["run"]:
        return DONE
    instance, host = await instance_of(run), run.params.host
    guest = await guest_of(run, instance)
    try:
        agent = agent_of(run, host)
        await agent.plug(command(run, "plug"), guest)
        observed = await agent.start(command(run, "power_on"), guest, paused=False)
    except Unreachable:
        if not await is_down(run, host):
            raise
        log.warning("a host is off again, and its next boot starts the guest", host=host, server=guest.uuid)
        return Done(host=host, changes={"power_state": Power.NOSTATE, "task_state": None})
    return Done(host=host, changes={"observed": observed, "task_state": None})


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    """In error, as Nova has it; but a server whose resize waits for its user's decision goes on waiting."""
    found = instances.show(tx, run.instance_uuid)
    if found is None or found.task_state != Task.POWERING_ON:
        return
    (idle_again if found.vm_state == Vm.RESIZED else in_error)(tx, run, error)


RESUME_GUEST = Operation(
    name="resume_guest",
    steps=(
        Step("look", _look, event="compute_init_host"),
        Step("power_on", _power_on, event="compute_resume_state_on_host_boot"),
    ),
    params=ResumeGuestParams,
    apply=apply,
    failed=_failed,
    deadline=600.0,
    host_of=host_of,
)
