"""What other services tell compute about a server: a port was wired, has changed, is gone."""

from __future__ import annotations

from typing import Any

import structlog

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.model.states import Task
from kilonova.operations import power
from kilonova.operations.cloud import Cloud

log = structlog.get_logger("kilonova.events")


async def deliver(cloud: Cloud, uuid: str, name: str, tag: str, status: str = "completed") -> None:
    """Take over one event.  One that nobody waits for and that changes nothing is dropped."""
    cloud = await cloud.of_server(uuid)
    if name in ("network-vif-plugged", "network-vif-unplugged"):
        await cloud.db.write(lambda tx: cloud.journal.signal(tx, uuid, name, tag, status))
    elif name in ("network-changed", "network-vif-deleted"):
        await _refresh(cloud, uuid)
    elif name == "power-update":
        await _look(cloud, uuid)
    else:
        log.info("event is of no concern here", instance=uuid, name=name, tag=tag)


async def _refresh(cloud: Cloud, uuid: str) -> None:
    """Read the server's ports and groups again, unless an operation is at them (it reads them itself)."""
    vifs = await cloud.network.vifs(uuid)
    groups = await cloud.network.security_groups(uuid)

    def write(tx: Tx) -> None:
        instance = instances.show(tx, uuid)
        if instance is not None and instance.task_state not in (Task.NETWORKING, Task.DELETING):
            known = {vif.port_id: vif for vif in instance.vifs}
            kept = tuple(vif for vif in vifs if vif.port_id in known or instance.task_state is None)
            changes: dict[str, Any] = {} if kept == instance.vifs else {"vifs": kept}
            if set(groups) != set(instance.security_groups):
                changes["security_groups"] = groups
            if changes:
                instances.update(tx, uuid, expect_task=instances.ANY, **changes)

    await cloud.db.write(write)


async def _look(cloud: Cloud, uuid: str) -> None:
    """Somebody says that the guest's power has changed: ask its host, which knows."""
    instance = await cloud.db.read(lambda tx: instances.show(tx, uuid))
    if instance is not None and instance.host is not None:
        await power.observed(cloud, await cloud.hosts.agent(instance.host).observe(uuid))
