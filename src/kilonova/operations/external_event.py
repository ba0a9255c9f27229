"""What other services tell compute about a server: a port was wired, has changed, is gone."""

from __future__ import annotations

from typing import Any

import structlog

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.errors import Conflict
from kilonova.model.instance import Instance
from kilonova.model.port import Vif
from kilonova.model.states import Task
from kilonova.operations import detach_interface, power
from kilonova.operations.cloud import Cloud
from kilonova.operations.steps import VIF_PLUGGED

VIF_UNPLUGGED = "network-vif-unplugged"
LEAVING = frozenset({Task.DELETING, Task.SOFT_DELETING, Task.MIGRATING})

TRIES, PAUSE = 10, 0.2  # seconds

log = structlog.get_logger("kilonova.events")


async def deliver(cloud: Cloud, uuid: str, name: str, tag: str, status: str = "completed") -> None:
    """Take over one event.  One that nobody waits for and that changes nothing is dropped."""
    cloud = await cloud.of_server(uuid)
    if name in (VIF_PLUGGED, VIF_UNPLUGGED):
        await cloud.db.write(lambda tx: _signal(tx, cloud, uuid, name, tag, status))
    elif name == "network-changed":
        await _refresh(cloud, uuid)
    elif name == "network-vif-deleted":
        await _refresh(cloud, uuid, deleted=tag)
    elif name == "power-update":
        await _look(cloud, uuid)
    else:
        log.info("event is of no concern here", instance=uuid, name=name, tag=tag)


def _signal(tx: Tx, cloud: Cloud, uuid: str, name: str, tag: str, status: str) -> None:
    """Nobody ever waits for a port to be unplugged; at the end of a guest, or of its stay, it is no news."""
    if cloud.journal.signal(tx, uuid, name, tag, status) and name == VIF_PLUGGED:
        return
    instance = instances.show(tx, uuid)
    if instance is None or (name == VIF_UNPLUGGED and instance.task_state in LEAVING):
        return
    log.warning(
        "an event came that nobody waits for",
        instance=uuid,
        name=name,
        tag=tag,
        vm_state=instance.vm_state,
        task_state=instance.task_state,
    )


async def _refresh(cloud: Cloud, uuid: str, deleted: str | None = None) -> None:
    """Again while the server is leaving its cell, and in the one where it comes to."""
    for _ in range(TRIES):
        try:
            await _read_again(await cloud.of_server(uuid), uuid, deleted)
            return
        except Conflict as error:
            log.info("a server's ports are read again later", instance=uuid, reason=str(error))
        await cloud.clock.sleep(PAUSE)
    log.error("a server's ports were not read again: it is between two cells", instance=uuid)


async def _read_again(cloud: Cloud, uuid: str, deleted: str | None) -> None:
    """Read the server's ports and groups again, unless an operation is at them (it reads them itself).

    What is left of a ``deleted`` port is taken from its guest, if the server's state allows that.
    """
    vifs = await cloud.network.vifs(uuid)
    groups = await cloud.network.security_groups(uuid)

    def write(tx: Tx) -> None:
        instance = instances.show(tx, uuid)
        if instance is not None and instance.task_state not in (Task.NETWORKING, Task.DELETING):
            known = {vif.port_id: vif for vif in instance.vifs}
            idle = instance.task_state is None and not cloud.journal.is_busy(tx, uuid)
            kept = tuple(vif for vif in vifs if vif.port_id in known or idle)
            changes: dict[str, Any] = {} if kept == instance.vifs else {"vifs": kept}
            if set(groups) != set(instance.security_groups):
                changes["security_groups"] = groups
            if changes:
                instances.update(tx, uuid, expect_task=instances.ANY, **changes)
            if deleted in known and deleted not in {vif.port_id for vif in kept}:
                _unplug(tx, cloud, instance, known[deleted])

    await cloud.db.write(write)


def _unplug(tx: Tx, cloud: Cloud, instance: Instance, vif: Vif) -> None:
    try:
        detach_interface.submit_for_deleted_port(tx, cloud, instance, vif)
    except Conflict as error:  # its next start is without that port
        log.info(
            "a deleted port stays in a guest", instance=instance.uuid, port=vif.port_id, reason=str(error)
        )


async def _look(cloud: Cloud, uuid: str) -> None:
    """Somebody says that the guest's power has changed: ask its host, which knows."""
    instance = await cloud.db.read(lambda tx: instances.show(tx, uuid))
    if instance is not None and instance.host is not None:
        seen = await cloud.hosts.agent(instance.host).observe(uuid)
        await power.observed(cloud, seen, instance.host)
