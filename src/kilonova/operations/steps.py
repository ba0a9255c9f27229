"""What the steps of several operations share: the server they are about, its host, its guest."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Failed
from kilonova.journal.model import Run, StoredError
from kilonova.model.instance import Fault, Instance, instance_name
from kilonova.operations.cloud import Cloud
from kilonova.rpc.host import HostAgent
from kilonova.rpc.messages import Command, GuestSpec, Observed


class NoParams(msgspec.Struct, frozen=True):
    """An operation that needs to know nothing but its server."""


async def instance_of(run: Run) -> Instance:
    """The server, read once a run: only its operation changes what steps look at."""
    known: Instance | None = run.known.get("instance")
    if known is None:
        known = await run.cloud.db.read(lambda tx: instances.show(tx, run.instance_uuid))
        if known is None:
            raise Failed(f"Instance {run.instance_uuid} has vanished from the database.")
        run.known["instance"] = known
    return known


def apply(tx: Tx, run: Run, changes: dict[str, Any]) -> None:
    """Make a step's changes of the server.

    The task_state belongs to the delete that cancelled us, and the power state to whoever looked last.
    """
    changes = dict(changes)
    observed: Observed | None = changes.pop("observed", None)
    if run.action.cancel:
        changes.pop("task_state", None)
    if changes:
        instances.update(tx, run.instance_uuid, expect_task=instances.ANY, **changes)
        if "instance" in run.known:
            run.known["instance"] = msgspec.structs.replace(run.known["instance"], **changes)
    if observed is not None:
        instances.observe(tx, run.instance_uuid, observed.power_state, observed.generation)
    if "task_state" in changes and changes["task_state"] is None:
        from kilonova.operations import power  # which submits a stop, whose steps are made with this module

        power.after_operation(tx, run.cloud, run.instance_uuid)


def command(run: Run, step: str) -> Command:
    action = run.action
    return Command(
        id=run.command_id(step), request_id=action.request_id, action=action.id, epoch=action.epoch
    )


def agent_of(run: Run, host: str) -> HostAgent:
    cloud: Cloud = run.cloud
    return cloud.hosts.agent(host)


def host_of(run: Run) -> str | None:
    """The host that the run's server is on, as far as this run knows."""
    instance: Instance | None = run.known.get("instance")
    return None if instance is None else instance.host


async def guest_of(run: Run, instance: Instance, files: tuple[tuple[str, bytes], ...] = ()) -> GuestSpec:
    """The guest as a host needs to know it; ``files`` go onto its config drive."""
    cloud: Cloud = run.cloud
    claim = await cloud.claims.of(instance)
    return GuestSpec(
        uuid=instance.uuid,
        name=instance.display_name,
        hostname=instance.hostname,
        project_id=instance.project_id,
        user_id=instance.user_id,
        flavor=instance.flavor,
        image=instance.image,
        vifs=instance.vifs,
        config_drive=cloud.config_drive(instance, files) if instance.config_drive else None,
        metadata=instance.metadata,
        created_at=instance.created_at,
        domain=instance_name(cloud.settings.text("instance_name_template"), instance.id, instance.uuid),
        numa=None if claim is None else claim.numa,
        pci=() if claim is None else claim.devices,
    )


def fault_of(error: StoredError, now: int) -> Fault:
    """The fault that users see: at most 255 characters, the whole story in the details."""
    lines = [f"{host}: {reason}" for host, reason in error.reasons.items()]
    counts = [f"{name} refused {count} hosts" for name, count in error.removed.items()]
    message = error.message
    if lines:
        message = f"{message} {'; '.join(lines)}"
    if len(message) > 255:
        message = message[:252] + "..."
    return Fault(
        code=error.code,
        message=message,
        created=now,
        details="\n".join([error.message, *lines, *counts, error.traceback]),
    )


def idle_again(tx: Tx, run: Run, error: StoredError) -> None:
    """The server stays as it was, with nothing going on and the fault noted."""
    now = run.cloud.clock.now()
    apply(tx, run, {"task_state": None, "fault": fault_of(error, now)})
