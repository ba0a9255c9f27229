"""What tests of the API of moves share: another host, and what a request has written down."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from kilonova.db import hosts, instances, migrations
from kilonova.journal import actions as journal
from kilonova.journal import attention
from kilonova.model.host import HostReport
from kilonova.model.migration import Migration
from kilonova.operations.cloud import Cloud

T = TypeVar("T")


async def report(cloud: Cloud, name: str, cell: str | None = None) -> None:
    """Have a host that is up."""
    told = HostReport(
        host=name,
        compute_id=f"c0de0000-0000-4000-8000-{name:>12}".replace(" ", "0"),
        hypervisor_hostname=name,
        hypervisor_type="fake",
        hypervisor_version=1,
        host_ip="127.0.0.1",
        inventories={},
    )
    await cloud.db.write(lambda tx: hosts.upsert(tx, told, cloud.clock.now(), cell_uuid=cell))


async def put(cloud: Cloud, uuid: str, **values: Any) -> None:
    assert await cloud.db.write(lambda tx: instances.update(tx, uuid, expect_task=instances.ANY, **values))


async def params_of(cloud: Cloud, uuid: str, operation: str, kind: type[T]) -> T:
    """What the operation was told."""
    rows = await cloud.db.read(attention.open_actions)
    (row,) = [row for row in rows if row.instance_uuid == uuid and row.operation == operation]
    return msgspec.json.decode(row.params, type=kind)


async def recorded(cloud: Cloud, uuid: str) -> list[Migration]:
    return await cloud.db.read(lambda tx: migrations.page(tx, {"instance_uuid": uuid}))


async def actions(cloud: Cloud, uuid: str) -> list[str]:
    return [each.action for each in await cloud.db.read(lambda tx: journal.list_actions(tx, uuid))]
