"""Hosts: reported, alive or not, disabled, and never two under one name."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kilonova.clock import SECOND
from kilonova.db import hosts
from kilonova.db.engine import Database
from kilonova.errors import Conflict, NotFound
from kilonova.model.host import Host, HostReport, Inventory

NODE = "00000000-0000-0000-0000-00000000000a"


def report(host: str = "h1", compute_id: str = NODE, **more: Any) -> HostReport:
    values: dict[str, Any] = {
        "hypervisor_hostname": f"{host}.example",
        "hypervisor_type": "QEMU",
        "hypervisor_version": 7002009,
        "host_ip": "192.0.2.1",
        "inventories": {"VCPU": Inventory(total=4)},
        "cpu_info": {"arch": "x86_64", "topology": {"cores": 2}},
        "details": {"datapath_type": "netdev"},
        "started_at": 7,
        **more,
    }
    return HostReport(host=host, compute_id=compute_id, **values)


async def upsert(db: Database, said: HostReport, now: int = 1000) -> Host:
    return await db.write(lambda tx: hosts.upsert(tx, said, now))


async def test_a_new_host_gets_a_service_and_keeps_it(db: Database) -> None:
    first = await upsert(db, report())
    assert first.id > 0 and first.report_count == 1 and not first.disabled
    assert first.cpu_info["topology"] == {"cores": 2} and first.details == {"datapath_type": "netdev"}
    again = await upsert(db, report(host_ip="192.0.2.2"), 2000)
    assert again == msgspec.structs.replace(
        first, host_ip="192.0.2.2", last_seen_at=2000, report_count=2, updated_at=2000
    )
    assert await db.read(hosts.list_all) == [again]


async def test_a_renamed_host_and_a_lost_state_directory_are_refused(db: Database) -> None:
    await upsert(db, report())
    other = "00000000-0000-0000-0000-00000000000b"
    with pytest.raises(
        Conflict, match=r"'h1' reports as compute node .*0b, but the host 'h1' is known as .*0a"
    ):
        await upsert(db, report(compute_id=other))
    with pytest.raises(Conflict, match="'h2' reports"):
        await upsert(db, report(host="h2"))
    assert await db.read(hosts.count) == 1


async def test_what_an_administrator_said_outlives_reports(db: Database) -> None:
    await upsert(db, report())
    await db.write(lambda tx: hosts.set_disabled(tx, "h1", True, "rain", 5))
    await db.write(lambda tx: hosts.set_forced_down(tx, "h1", True, 5))
    now = await upsert(db, report(), 9)
    assert (now.disabled, now.disabled_reason, now.forced_down) == (True, "rain", True)


async def test_a_heartbeat_counts_and_a_deleted_host_must_report_anew(db: Database) -> None:
    await upsert(db, report())
    assert await db.write(lambda tx: hosts.heartbeat(tx, "h1", 7000)) is True
    found = await db.read(lambda tx: hosts.show(tx, "h1"))
    assert found is not None and found.last_seen_at == 7000 and found.report_count == 2
    await db.write(lambda tx: hosts.remove(tx, "h1"))
    assert await db.write(lambda tx: hosts.heartbeat(tx, "h1", 8000)) is False


async def test_hosts_are_found_by_each_of_their_names(db: Database) -> None:
    made = await upsert(db, report())
    for found in (
        await db.read(lambda tx: hosts.show(tx, "h1")),
        await db.read(lambda tx: hosts.by_service(tx, made.service_uuid)),
        await db.read(lambda tx: hosts.by_service(tx, str(made.id))),
        await db.read(lambda tx: hosts.by_node(tx, NODE.upper())),
        await db.read(lambda tx: hosts.by_node(tx, str(made.id))),
    ):
        assert found == made
    for unknown in ("x", "", "9" * 40, str(made.id + 1), "²"):
        assert await db.read(lambda tx, word=unknown: hosts.by_node(tx, word)) is None  # type: ignore[misc]
        assert await db.read(lambda tx, word=unknown: hosts.by_service(tx, word)) is None  # type: ignore[misc]


async def test_what_is_not_there_cannot_be_changed(db: Database) -> None:
    for change in (
        lambda tx: hosts.set_disabled(tx, "h1", True, None, 5),
        lambda tx: hosts.set_forced_down(tx, "h1", True, 5),
        lambda tx: hosts.remove(tx, "h1"),
    ):
        with pytest.raises(NotFound, match="Compute host h1 could not be found"):
            await db.write(change)


async def test_a_host_is_up_while_it_is_heard_of(db: Database) -> None:
    made = await upsert(db, report(), 100 * SECOND)
    assert hosts.is_up(made, 160 * SECOND, 60)
    assert not hosts.is_up(made, 160 * SECOND + 1, 60)
    assert not hosts.is_up(msgspec.structs.replace(made, forced_down=True), 100 * SECOND, 60)
