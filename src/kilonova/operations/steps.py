"""What the steps of several operations share: the server they are about, its host, its guest."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import structlog

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import (
    Conflict,
    Failed,
    Forbidden,
    HostFault,
    Invalid,
    KilonovaError,
    NotFound,
    OverQuota,
    Refused,
)
from kilonova.journal.model import DONE, Done, Run, StoredError, Wait
from kilonova.model.instance import Fault, Instance, instance_name
from kilonova.model.port import Vif
from kilonova.model.states import Vm
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import is_down, was_booted
from kilonova.rpc.host import HostAgent
from kilonova.rpc.messages import Command, GuestSpec, Observed

log = structlog.get_logger("kilonova.operations")

VIF_PLUGGED = "network-vif-plugged"


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
    """Make a step's changes of the server, also of one that is leaving its cell.

    The task_state belongs to the delete that cancelled us, and the power state to whoever looked last.
    """
    changes = dict(changes)
    observed: Observed | None = changes.pop("observed", None)
    if run.action.cancel:
        changes.pop("task_state", None)
    if changes:
        instances.update(tx, run.instance_uuid, expect_task=instances.ANY, even_leaving=True, **changes)
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
    return await guest_for(run, instance, holder=instance.uuid, files=files)


async def guest_for(
    run: Run, instance: Instance, *, holder: str, files: tuple[tuple[str, bytes], ...] = ()
) -> GuestSpec:
    """The same with the claim of ``holder``: the server itself, or the migration that keeps its old side."""
    cloud: Cloud = run.cloud
    claim = await cloud.claims.of(instance, holder)
    return GuestSpec(
        uuid=instance.uuid,
        name=instance.display_name,
        hostname=instance.hostname,
        project_id=instance.project_id,
        user_id=instance.user_id,
        flavor=instance.flavor,
        image=instance.image,
        vifs=instance.vifs,
        volumes=tuple(each for each in instance.volumes if each.connection is not None),
        config_drive=cloud.config_drive(instance, files) if instance.config_drive else None,
        metadata=instance.metadata,
        created_at=instance.created_at,
        domain=instance_name(cloud.settings.text("instance_name_template"), instance.id, instance.uuid),
        numa=None if claim is None else claim.numa,
        pci=() if claim is None else claim.devices,
    )


KINDS = (OverQuota, Forbidden, NotFound, Conflict, Invalid)


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Ask a service for something that it may refuse.

    Raises one of `KINDS` with its words: that is what the user is told.
    """
    try:
        yield
    except Refused as error:
        kind = next((kind for kind in KINDS if isinstance(error, kind)), Invalid)
        raise kind(str(error)) from error


LOOK = 5.0  # seconds between two looks whether the host whose ports are to be wired is up


def until_wired(cloud: Cloud, vifs: tuple[Vif, ...], failure: type[KilonovaError] = HostFault) -> Done | Wait:
    """Wait until the network service has wired these ports, as long as it is to be waited for.

    ``failure``: what it is if they are not, where that is fatal.
    """
    expected = frozenset((VIF_PLUGGED, vif.port_id) for vif in vifs)
    timeout = cloud.settings.number("vif_plugging_timeout")
    if not expected or timeout == 0:
        return DONE
    fatal = cloud.settings.flag("vif_plugging_is_fatal")

    def late(missing: set[tuple[str, str]]) -> Exception | None:
        ports = ", ".join(sorted(tag for _, tag in missing))
        message = f"The network service did not wire the ports {ports} within {timeout} seconds."
        if fatal:
            return failure(message)
        log.warning("a guest goes on without its ports", reason=message)
        return None

    return Wait(signals=expected, timeout=timeout, late=late)


async def until_wired_at(
    run: Run,
    host: str,
    vifs: tuple[Vif, ...],
    failure: type[KilonovaError] = HostFault,
    *,
    only: bool = False,
) -> Done | Wait:
    """As ``until_wired`` at that host.  Raises HostFault when it was booted meanwhile, or has gone down.

    ``only``: there is no other host that could, so that one that is down is waited for.
    """
    wait = until_wired(run.cloud, vifs, failure)
    if not isinstance(wait, Wait):
        return wait
    since = run.waits_since()
    if since is not None:
        if await was_booted(run, host, since):
            raise HostFault(f"The host {host} was booted while its ports were to be wired.")
        if not only and await is_down(run, host):
            raise HostFault(f"The host {host} has gone down.")
    return replace(wait, every=LOOK)


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


def with_all_tried(run: Run, error: StoredError) -> StoredError:
    """When the last of several hosts has failed, the user hears of all of them."""
    tried: dict[str, str] = run.action.outputs.get("tried", {})
    if not tried or error.reasons or error.kind != HostFault.__name__:
        return error
    reasons = {**tried, str(error.host): error.message}
    message = f"Exceeded maximum number of retries: {len(reasons)} hosts were tried."
    return msgspec.structs.replace(error, message=message, reasons=reasons)


def most_hosts(run: Run, named: str | None) -> int:
    """How many hosts may be tried; one that was ``named`` is the only one."""
    return 1 if named else int(run.cloud.settings.number("max_attempts", "scheduler"))


def in_error(tx: Tx, run: Run, error: StoredError) -> None:
    """The server is left in error, to tell why."""
    fault = fault_of(error, run.cloud.clock.now())
    apply(tx, run, {"vm_state": Vm.ERROR, "task_state": None, "fault": fault})


def idle_again(tx: Tx, run: Run, error: StoredError) -> None:
    """The server stays as it was, with nothing going on and the fault noted."""
    now = run.cloud.clock.now()
    apply(tx, run, {"task_state": None, "fault": fault_of(error, now)})
