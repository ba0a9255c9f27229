"""Stopping a server: the guest is asked to shut itself down, and turned off when it does not."""

from __future__ import annotations

import re

import msgspec
import structlog

from kilonova.journal.model import Done, Operation, Run, Step
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations.begin import begin
from kilonova.operations.cloud import Cloud
from kilonova.operations.steps import agent_of, apply, command, host_of, idle_again, instance_of

log = structlog.get_logger("kilonova.stop")

_SECONDS = re.compile(r"[0-9]{1,6}")


class StopParams(msgspec.Struct, frozen=True):
    clean: bool = True


async def submit(cloud: Cloud, context: RequestContext, uuid: str, *, clean: bool = True) -> None:
    """Raises NotFound, or Conflict when the server is not running."""
    await begin(cloud, context, uuid, "stop", STOP, StopParams(clean=clean))


def shutdown_timeout(cloud: Cloud, instance: Instance) -> float:
    """Seconds a guest has; the image's ``os_shutdown_timeout`` overrides, unless it is no number."""
    properties = instance.image.properties if instance.image else {}
    text = properties.get("os_shutdown_timeout")
    if text is not None:
        if _SECONDS.fullmatch(text):
            return float(text)
        log.warning("os_shutdown_timeout is no number of seconds", instance=instance.uuid, value=text)
    return float(cloud.settings.number("shutdown_timeout"))


async def shut_down(run: Run, instance: Instance, *, clean: bool, **changes: object) -> Done:
    """The step ``shut_down`` of a server that is on a host; ``changes`` are those of its row."""
    assert instance.host is not None
    observed = await agent_of(run, instance.host).shut_down(
        command(run, "shut_down"),
        instance.uuid,
        timeout=shutdown_timeout(run.cloud, instance),
        clean=clean,
    )
    return Done(host=instance.host, changes={"observed": observed, **changes})


async def _shut_down(run: Run) -> Done:
    instance = await instance_of(run)
    return await shut_down(run, instance, clean=run.params.clean, vm_state=Vm.STOPPED, task_state=None)


STOP = Operation(
    name="stop",
    steps=(Step("shut_down", _shut_down, event="compute_stop_instance"),),
    params=StopParams,
    apply=apply,
    failed=idle_again,
    deadline=600.0,
    host_of=host_of,
)
