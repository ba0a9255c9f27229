"""The audit finds what somebody planted, each kind by its name, and mends what is safe to mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import delete, insert, update

from kilonova.cli.doctor import Diagnosis, consult, examine
from kilonova.clock import SystemClock
from kilonova.db import (
    audit_facts,
    cell_mappings,
    host_report,
    host_resources,
    hosts,
    instances,
    leftovers,
    migrations,
    quotas,
    volume_attachments,
)
from kilonova.db.cell_mappings import CellMapping
from kilonova.db.engine import Database, Tx
from kilonova.db.leftovers import Leftover
from kilonova.db.quotas import Limits
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.db.tables.compute import instances as instances_table
from kilonova.db.tables.compute import quota_usages
from kilonova.db.tables.host_resources import host_claims, pci_devices
from kilonova.db.tables.journal import actions
from kilonova.db.tables.placement import allocations, consumers, inventories, resource_providers
from kilonova.db.volume_attachments import StoredAttachment
from kilonova.errors import Failed
from kilonova.model.host import Inventory
from kilonova.model.host_resources import Claim
from kilonova.model.instance import Instance
from kilonova.model.migration import Migration
from kilonova.model.volume import Attachment
from kilonova.resources import audit
from kilonova.resources.claims import Claims
from kilonova.resources.pci_request import FLAVOR_KEY, read_aliases
from kilonova.services.placement.builtin import BuiltinPlacement
from tests.unit.resources.numa import flavor_with
from tests.unit.resources.test_claims import HOST, OTHER, report

ALIASES = read_aliases(['{"name": "a", "vendor_id": "8086", "product_id": "1234"}'])
SPECIAL = {"hw:cpu_policy": "dedicated", FLAVOR_KEY: "a:1"}
STOCK = {
    "VCPU": Inventory(total=64),
    "PCPU": Inventory(total=16),
    "MEMORY_MB": Inventory(total=65536),
    "DISK_GB": Inventory(total=100),
}


class Sound:
    """Two hosts with two ordinary servers and a special one on the first, and one on the second."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.placement = BuiltinPlacement(db, SystemClock())
        self.claims = Claims(db, self.placement, aliases=ALIASES)

    async def build(self) -> None:
        for compute_id in (HOST, OTHER):
            await self.placement.report(compute_id, compute_id, STOCK, ())
            told = report(compute_id)
            await self.db.write(
                lambda tx, told=told: (hosts.upsert(tx, told, 1), host_report.take_over(tx, told))
            )
        await self.server("plain-1")
        await self.server("plain-2")
        await self.server("special", SPECIAL)
        await self.server("special-2", SPECIAL, at=OTHER)

    async def server(
        self, uuid: str, specs: dict[str, str] | None = None, *, at: str | None = HOST
    ) -> Instance:
        flavor = flavor_with(specs or {}, 2)
        server = Instance(
            uuid=uuid,
            project_id="p",
            user_id="u",
            display_name=uuid,
            vm_state="active",
            flavor=flavor,
            host=at,
        )

        def write(tx: Tx) -> None:
            instances.insert(tx, server)
            quotas.reserve(tx, "p", "u", Limits({}, {}), instances=1, cores=2, ram=1024)

        await self.db.write(write)
        if at is not None:
            wanted = self.claims.wanted(flavor, {})
            amounts = {"VCPU" if specs is None else "PCPU": 2, "MEMORY_MB": 1024}
            found = await self.claims.claim(uuid, at, wanted, {at: amounts}, "p", "u")
            assert isinstance(found, Claim), found
        return server

    async def plant(self, *statements: Any) -> None:
        await self.db.write(lambda tx: [tx.run(statement) for statement in statements])

    async def found(self) -> list[tuple[str, str]]:
        diagnosis = await self.db.read(examine)
        return [(each.kind, each.subject) for each in diagnosis.found]

    async def mend(self) -> Diagnosis:
        return await self.db.write(lambda tx: examine(tx, mend=True))


@pytest.fixture
async def sound(db: Database) -> Sound:
    made = Sound(db)
    await made.build()
    return made


async def test_a_sound_cloud_has_no_findings(sound: Sound) -> None:
    assert await sound.found() == []
    assert (await sound.db.read(examine)).servers == 4


def allocation(consumer: str, provider: str = HOST, name: str = "VCPU", amount: int = 1) -> list[Any]:
    """Planted with its counter, so that nothing but the allocation is wrong."""
    return [
        insert(consumers).values(
            uuid=consumer, generation=1, project_id="p", user_id="u", consumer_type="INSTANCE"
        ),
        insert(allocations).values(consumer=consumer, provider=provider, resource_class=name, amount=amount),
        update(inventories)
        .where(inventories.c.provider == provider, inventories.c.resource_class == name)
        .values(used=inventories.c.used + amount),
    ]


async def test_an_allocation_without_a_server(sound: Sound) -> None:
    await sound.plant(*allocation("nobody"))
    assert await sound.found() == [("allocation without a server", "nobody")]


async def test_what_others_book_elsewhere_is_theirs(sound: Sound) -> None:
    await sound.placement.report("router", "router", {"IPV4_ADDRESS": Inventory(total=9)}, ())
    await sound.plant(*allocation("a-port", "router", "IPV4_ADDRESS"))
    assert await sound.found() == []


@pytest.mark.capability("RT-19")
async def test_allocations_of_deleted_servers_are_removed_and_others_left(sound: Sound) -> None:
    await sound.plant(*allocation("nobody"))

    def deleted(tx: Tx) -> None:
        assert instances.mark_deleted(tx, "special", 5)
        quotas.give_back(tx, "p", "u", instances=1, cores=2, ram=1024)

    await sound.db.write(deleted)
    left = ("allocation without a server", "nobody")
    assert await sound.found() == [
        left,
        ("allocation of a deleted server", "special"),
        ("claim of a deleted server", "special"),
    ]
    diagnosis = await sound.mend()
    assert [each.kind for each in diagnosis.mended] == [
        "allocation of a deleted server",
        "claim of a deleted server",
    ]
    assert await sound.found() == [left]
    assert await sound.placement.held("special") == {}
    now = await sound.db.read(lambda tx: host_resources.read(tx, HOST))
    assert now.guests == () and not any(each.holder for each in now.devices)


async def test_a_server_without_an_allocation(sound: Sound) -> None:
    await sound.placement.release("plain-1")
    assert await sound.found() == [("server without an allocation", "plain-1")]


async def test_an_allocation_on_a_wrong_host(sound: Sound) -> None:
    await sound.placement.release("plain-1")
    await sound.placement.claim("plain-1", {OTHER: {"VCPU": 2, "MEMORY_MB": 1024}}, "p", "u")
    assert await sound.found() == [("allocation on a wrong host", "plain-1")]


async def test_a_server_on_no_host_that_holds_something(sound: Sound) -> None:
    await sound.server("lost", at=None)
    assert await sound.found() == []
    await sound.placement.claim("lost", {HOST: {"VCPU": 2, "MEMORY_MB": 1024}}, "p", "u")
    assert await sound.found() == [("allocation on a wrong host", "lost")]


async def test_an_allocation_of_a_wrong_size(sound: Sound) -> None:
    await sound.placement.release("plain-1")
    await sound.placement.claim("plain-1", {HOST: {"VCPU": 1, "MEMORY_MB": 1024}}, "p", "u")
    assert await sound.found() == [("allocation of a wrong size", "plain-1")]


async def test_a_wrong_counter_of_placement(sound: Sound) -> None:
    wrong = update(inventories).where(
        inventories.c.provider == HOST, inventories.c.resource_class == "MEMORY_MB"
    )
    await sound.plant(wrong.values(used=9))
    assert await sound.found() == [("wrong used counter", HOST)]
    assert [each.kind for each in (await sound.mend()).mended] == ["wrong used counter"]
    assert await sound.found() == []


async def test_a_wrong_counter_of_quota(sound: Sound) -> None:
    await sound.plant(update(quota_usages).where(quota_usages.c.user_id == "u").values(cores=1))
    assert await sound.found() == [("wrong quota counter", "p")]
    assert len((await sound.mend()).mended) == 1
    assert await sound.found() == []


def claims_row(**changes: Any) -> Any:
    return update(host_claims).where(host_claims.c.consumer == "special").values(**changes)


async def test_a_device_that_two_have_claimed(sound: Sound) -> None:
    claim = await sound.db.read(lambda tx: host_resources.claim_of(tx, "special"))
    assert claim is not None
    await sound.server("thief", {"hw:cpu_policy": "dedicated"})
    await sound.plant(
        update(host_claims)
        .where(host_claims.c.consumer == "thief")
        .values(devices=host_resources.encoded(claim.devices))
    )
    assert await sound.found() == [("device claimed twice", "0000:01:00.0")]


async def test_a_device_that_another_holds(sound: Sound) -> None:
    await sound.plant(update(pci_devices).where(pci_devices.c.holder == "special").values(holder=None))
    assert await sound.found() == [("device held by another", "0000:01:00.0")]
    await sound.plant(
        update(pci_devices).where(pci_devices.c.address == "0000:02:00.0").values(holder="plain-1")
    )
    assert len(await sound.found()) == 3


async def test_a_cpu_that_two_have(sound: Sound) -> None:
    claim = await sound.db.read(lambda tx: host_resources.claim_of(tx, "special"))
    assert claim is not None and claim.numa is not None
    await sound.server("thief", {"hw:cpu_policy": "dedicated"})
    await sound.plant(
        update(host_claims)
        .where(host_claims.c.consumer == "thief")
        .values(numa=host_resources.encoded(claim.numa))
    )
    (found,) = (await sound.db.read(examine)).found
    assert (found.kind, found.subject) == ("host has less than is held", HOST)
    assert "CPUs 0-1 are pinned by several servers" in found.message


async def test_a_host_that_has_lost_its_cells(sound: Sound) -> None:
    await sound.db.write(lambda tx: host_report.take_over(tx, report(numa=None)))
    assert await sound.found() == [("host has less than is held", HOST)]


async def test_claims_that_are_nobodys(sound: Sound) -> None:
    await sound.plant(claims_row(instance_uuid="nobody"))
    assert await sound.found() == [("claim without a server", "special")]


async def test_a_claim_without_its_allocation(sound: Sound) -> None:
    await sound.placement.release("special")
    assert await sound.found() == [
        ("server without an allocation", "special"),
        ("claim without an allocation", "special"),
    ]


async def test_a_claim_on_a_wrong_host(sound: Sound) -> None:
    await sound.plant(
        claims_row(compute_id=OTHER, devices="[]"),
        update(pci_devices).where(pci_devices.c.holder == "special").values(holder=None),
    )
    kinds = await sound.found()
    assert ("claim on a wrong host", "special") in kinds
    assert ("host has less than is held", OTHER) in kinds  # both are pinned to the same CPUs there


async def test_a_server_that_has_claimed_nothing(sound: Sound) -> None:
    await sound.db.write(lambda tx: host_resources.drop(tx, "special"))
    assert await sound.found() == [("server without its claim", "special")]


async def test_servers_on_hosts_and_hosts_without_providers(sound: Sound) -> None:
    await sound.plant(
        update(instances_table).where(instances_table.c.uuid == "plain-1").values(host="nowhere")
    )
    assert sorted(await sound.found()) == [
        ("allocation on a wrong host", "plain-1"),
        ("server on an unknown host", "plain-1"),
    ]
    await sound.db.write(lambda tx: hosts.upsert(tx, replace(report("h3"), numa=None), 1))
    assert ("host without a provider", "h3") in await sound.found()


async def attached(sound: Sound, attachment: str, uuid: str, host: str | None = HOST) -> None:
    """The volume service knows of that; the server's row does not say so."""
    record = StoredAttachment(
        id=attachment, volume_id="v", instance_uuid=uuid, status="attached", host=host, created_at=1
    )
    await sound.db.write(lambda tx: volume_attachments.add(tx, record))


async def has_volume(sound: Sound, uuid: str, attachment: str) -> None:
    """The server's row says so."""
    mine = (Attachment(id="b", volume_id="v", attachment_id=attachment, device="/dev/vdb"),)
    await sound.db.write(lambda tx: instances.update(tx, uuid, expect_task=None, volumes=mine))


async def test_a_volume_that_row_and_service_know(sound: Sound) -> None:
    await attached(sound, "a1", "plain-1")
    await has_volume(sound, "plain-1", "a1")
    assert await sound.found() == []
    await sound.plant(update(instances_table).where(instances_table.c.uuid == "plain-1").values(host=OTHER))
    assert ("volume on a wrong host", "plain-1") in await sound.found()


async def test_attachments_that_no_server_knows(sound: Sound) -> None:
    await attached(sound, "a1", "nobody")
    await attached(sound, "a2", "plain-2")
    assert await sound.found() == [
        ("volume attachment without a server", "nobody"),
        ("volume attachment without a server", "plain-2"),
    ]
    messages = [each.message for each in (await sound.db.read(examine)).found]
    assert "that does not exist" in messages[0] and "knows nothing" in messages[1]


async def test_a_volume_that_its_service_does_not_know(sound: Sound) -> None:
    await has_volume(sound, "plain-1", "a1")
    assert await sound.found() == [("server with an unknown volume", "plain-1")]


async def test_volumes_that_an_operation_is_at(sound: Sound) -> None:
    """It is allowed to be in between."""
    await has_volume(sound, "plain-1", "a1")
    await attached(sound, "a2", "plain-1")
    await sound.plant(insert(actions).values(**working_on("plain-1")))
    assert await sound.found() == []


async def test_migrations_keep_what_they_need_and_no_longer(sound: Sound) -> None:
    migration = Migration(
        uuid="m1",
        instance_uuid="special",
        project_id="p",
        user_id="u",
        migration_type="resize",
        status="finished",
        created_at=1,
    )
    await sound.db.write(lambda tx: migrations.insert(tx, migration))
    await sound.claims.set_aside("special", "m1")
    flavor = flavor_with(SPECIAL, 2)
    amounts = {HOST: {"PCPU": 2, "MEMORY_MB": 1024}}
    await sound.claims.claim("special", HOST, sound.claims.wanted(flavor, {}), amounts, "p", "u")
    assert await sound.found() == []
    await sound.db.write(lambda tx: migrations.update(tx, "m1", status="confirmed"))
    assert await sound.found() == [("allocation of a migration that is over", "m1")]
    await sound.claims.drop_old("m1")
    assert await sound.found() == []


async def test_what_a_host_gave_is_kept_until_it_is_cleared(sound: Sound) -> None:
    """Of an evacuated server; also when that is deleted meanwhile."""
    migration = Migration(
        uuid="m1",
        instance_uuid="special",
        project_id="p",
        user_id="u",
        migration_type="evacuation",
        status="done",
        created_at=1,
    )
    owed = Leftover(host=HOST, instance_uuid="special", migration_uuid="m1", action=1, created_at=1)
    await sound.db.write(lambda tx: (migrations.insert(tx, migration), leftovers.owe(tx, owed)))
    await sound.claims.set_aside("special", "m1")
    await sound.plant(update(instances_table).where(instances_table.c.uuid == "special").values(deleted_at=1))
    assert {kind for kind, _ in await sound.found()} == {"wrong quota counter"}  # by our deletion
    (row,) = await sound.db.read(lambda tx: leftovers.of_host(tx, HOST))
    await sound.db.write(lambda tx: leftovers.settle(tx, row))
    assert ("allocation of a migration that is over", "m1") in await sound.found()


async def test_what_is_being_worked_on_is_left_out(sound: Sound) -> None:
    await sound.placement.release("plain-1")
    await sound.placement.release("plain-2")
    await sound.placement.claim("plain-2", {OTHER: {"VCPU": 2, "MEMORY_MB": 1024}}, "p", "u")
    await sound.db.write(lambda tx: host_resources.drop(tx, "special"))
    for uuid in ("plain-1", "plain-2", "special"):
        assert uuid in dict(map(reversed, await sound.found()))  # type: ignore[arg-type]
        await sound.plant(insert(actions).values(**working_on(uuid)))
    assert await sound.found() == []


def cell(name: str, connection: str) -> CellMapping:
    return CellMapping(uuid=name, name=name, database_connection=connection, transport_url="nats:///x")


async def test_servers_of_other_cells_are_heard_too(sound: Sound, tmp_path: Path) -> None:
    server = await sound.server("far")
    other = SqliteDatabase(tmp_path / "other.db", SystemClock())
    await bring_up(other)
    await other.write(lambda tx: instances.insert(tx, server))
    await other.close()
    await sound.plant(delete(instances_table).where(instances_table.c.uuid == "far"))
    kinds = {each.kind for each in (await consult(sound.db)).found}
    assert kinds == {"allocation without a server", "wrong quota counter"}
    mapping = cell("c2", f"sqlite:///{tmp_path / 'other.db'}")
    await sound.db.write(lambda tx: cell_mappings.insert(tx, mapping))
    diagnosis = await consult(sound.db)
    assert {each.kind for each in diagnosis.found} == {"wrong quota counter"}  # which mappings would tell
    assert diagnosis.servers == 5


async def test_a_cell_that_does_not_answer_ends_the_audit(sound: Sound) -> None:
    mapping = cell("c2", "postgresql://nobody@127.0.0.1:1/x")
    await sound.db.write(lambda tx: cell_mappings.insert(tx, mapping))
    with pytest.raises(Failed, match="The cell c2 cannot be asked"):
        await consult(sound.db, mend=True)


def working_on(uuid: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for column in actions.columns:
        if column.autoincrement is True or column.nullable:
            continue
        kind = column.type.python_type
        values[column.name] = {"instance_uuid": uuid, "open": True}.get(column.name, kind())
    return values


async def test_a_repair_leaves_a_deleted_server_that_is_worked_on(sound: Sound) -> None:
    await sound.db.write(lambda tx: instances.mark_deleted(tx, "plain-1", 5))
    top, cell = await sound.db.read(lambda tx: (audit_facts.of_top(tx), audit_facts.of_cell(tx)))
    found = audit.findings(top, [cell])
    await sound.plant(insert(actions).values(**working_on("plain-1")))
    assert await sound.db.write(lambda tx: audit.repair(tx, top, found)) == []
    assert await sound.placement.held("plain-1") != {}


async def test_counters_of_what_is_gone_are_told(sound: Sound) -> None:
    await sound.plant(delete(inventories).where(inventories.c.resource_class == "MEMORY_MB"))
    await sound.plant(delete(resource_providers).where(resource_providers.c.uuid == OTHER))
    diagnosis = await sound.mend()
    assert {each.kind for each in diagnosis.found} >= {"wrong used counter", "host without a provider"}
    assert diagnosis.mended == []
