"""Claims in a database, with their allocations."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from kilonova.clock import SystemClock
from kilonova.db import host_report, host_resources
from kilonova.db import placement as bookings
from kilonova.db.engine import Database, Tx
from kilonova.errors import Conflict, HostFault
from kilonova.model.host import HostReport, Inventory
from kilonova.model.host_resources import Claim, HostResources, Item, Wanted
from kilonova.model.instance import ImageMeta, Instance
from kilonova.model.pci import PF, VF, PciRequest
from kilonova.model.port import Vif
from kilonova.resources.claims import NO_ROOM, Claims, is_special
from kilonova.resources.pci_request import FLAVOR_KEY, read_aliases
from kilonova.resources.shortfalls import shortfalls
from kilonova.services.placement.builtin import BuiltinPlacement
from tests.unit.resources.numa import cell, flavor_with, host
from tests.unit.resources.test_pci_fit import device

HOST, OTHER, PROJECT, USER = "host-1", "host-2", "p", "u"
ITEM = "CUSTOM_PMEM"
ALIASES = read_aliases(
    [
        '{"name": "a", "vendor_id": "8086", "product_id": "1234"}',
        '{"name": "vf", "vendor_id": "8086", "product_id": "1234", "device_type": "type-VF"}',
    ]
)
SPECIAL = {"hw:cpu_policy": "dedicated", FLAVOR_KEY: "a:1"}


def report(compute_id: str = HOST, **more: Any) -> HostReport:
    values: dict[str, Any] = {
        "host": compute_id,
        "compute_id": compute_id,
        "hypervisor_hostname": compute_id,
        "hypervisor_type": "fake",
        "hypervisor_version": 1,
        "host_ip": "",
        "inventories": {},
        "numa": host(),
        "pci_devices": (device(1, numa_cell=0), device(2, numa_cell=1)),
    }
    return HostReport(**{**values, **more})


@pytest.fixture
async def claims(db: Database) -> Claims:
    """Two hosts of two cells with eight CPUs and a device each, and four items on the first."""
    placement = BuiltinPlacement(db, SystemClock())
    stock = {
        "VCPU": Inventory(total=64),
        "PCPU": Inventory(total=16),
        "MEMORY_MB": Inventory(total=16384),
        ITEM: Inventory(total=4),
    }
    for compute_id in (HOST, OTHER):
        await placement.report(compute_id, compute_id, stock, ())
        await db.write(lambda tx, at=compute_id: host_report.take_over(tx, report(at)))
    items = tuple(Item(provider=HOST, resource_class=ITEM, identifier=f"ns{n}") for n in range(4))
    await db.write(lambda tx: host_report.take_over(tx, report(items=items)))
    return Claims(db, placement, aliases=ALIASES)


async def take(
    claims: Claims, consumer: str, specs: dict[str, str], *, at: str = HOST, vcpus: int = 2, **more: Any
) -> Claim | str:
    wanted = claims.wanted(flavor_with(specs, vcpus), {})
    pinned = wanted.numa is not None and bool(wanted.numa.cells[0].dedicated)
    allocations = {
        at: {"PCPU" if pinned else "VCPU": vcpus, "MEMORY_MB": 1024, **more.pop("also_booked", {})}
    }
    return await claims.claim(consumer, at, wanted, allocations, PROJECT, USER, **more)


async def taken(claims: Claims, consumer: str, specs: dict[str, str], **more: Any) -> Claim:
    found = await take(claims, consumer, specs, **more)
    assert isinstance(found, Claim), found
    return found


async def there(db: Database, compute_id: str = HOST) -> HostResources:
    return await db.read(lambda tx: host_resources.read(tx, compute_id))


def cpus(claim: Claim) -> list[int]:
    assert claim.numa is not None
    return [cpu for each in claim.numa.cells for cpu in each.pinning.values()]


@pytest.mark.capability("RT-3", "CL-6")
async def test_a_claim_takes_everything_at_once(claims: Claims, db: Database) -> None:
    claim = await taken(claims, "s1", SPECIAL)
    assert cpus(claim) == [0, 1] and [each.address for each in claim.devices] == ["0000:01:00.0"]
    assert await claims._placement.held("s1") == {HOST: {"PCPU": 2, "MEMORY_MB": 1024}}
    now = await there(db)
    assert now.guests == (claim.numa,)
    assert [each.holder for each in now.devices] == ["s1", None]
    assert await db.read(lambda tx: host_resources.claim_of(tx, "s1")) == claim


async def test_a_repeat_gets_the_same_claim(claims: Claims, db: Database) -> None:
    first = await taken(claims, "s1", SPECIAL)
    before = (await there(db)).devices
    assert await take(claims, "s1", SPECIAL) == first
    assert (await there(db)).devices == before


@pytest.mark.capability("CL-4", "CL-5")
async def test_what_does_not_fit_leaves_nothing(claims: Claims, db: Database) -> None:
    reason = await take(claims, "s1", {**SPECIAL, FLAVOR_KEY: "a:3"}, vcpus=12)
    assert isinstance(reason, str)
    assert (
        reason.startswith("claim of PCI devices failed: 3 of a wanted") and "; the requested NUMA" in reason
    )
    assert await claims._placement.held("s1") == {}
    now = await there(db)
    assert not now.guests and not any(each.holder for each in now.devices)
    assert await take(claims, "s1", SPECIAL, vcpus=17) == NO_ROOM  # placement's own word


async def test_what_goes_with_it_can_take_all_of_it_back(claims: Claims, db: Database) -> None:
    assert await take(claims, "s1", SPECIAL, also=lambda tx: False) == NO_ROOM
    assert (await there(db)).guests == () and await claims._placement.held("s1") == {}

    def fails(tx: Tx) -> bool:
        raise HostFault("no")

    with pytest.raises(HostFault):
        await take(claims, "s1", SPECIAL, also=fails)
    assert (await there(db)).guests == ()


@pytest.mark.capability("CL-8", "RT-7")
async def test_a_release_gives_everything_back(claims: Claims, db: Database) -> None:
    before = await there(db)
    await taken(claims, "s1", SPECIAL, also_booked={ITEM: 1})
    await claims.release("s1")
    await claims.release("s1")
    after = await there(db)
    assert replace(after, generation=0) == replace(before, generation=0)
    assert after.generation > before.generation
    assert await db.read(bookings.audit) == []


class Asked:
    """A placement that notes what is done in its transactions, and a database that nobody may touch."""

    def __init__(self) -> None:
        self.also: list[Any] = []

    async def claim(self, *args: Any, also: Any) -> bool:
        self.also.append(also)
        return True

    async def release(self, consumer: str, *, also: Any) -> None:
        self.also.append(also)


async def test_ordinary_servers_pay_nothing() -> None:
    """Not one statement more than placement's own."""
    asked: Any = Asked()
    nothing: Any = None
    claims = Claims(nothing, asked, aliases=ALIASES)
    instance = server({"hw:watchdog_action": "none"}, hw_disk_bus="virtio")
    assert instance.image is not None
    wanted = claims.wanted(instance.flavor, instance.image.properties)
    found = await claims.claim("s1", HOST, wanted, {HOST: {"VCPU": 1}}, PROJECT, USER)
    assert isinstance(found, Claim) and found.nothing
    assert await claims.of(instance) is None
    await claims.release_server(instance)
    assert asked.also == [None, None]


def server(specs: dict[str, str], **image: str) -> Instance:
    return Instance(
        uuid="s1",
        project_id=PROJECT,
        user_id=USER,
        display_name="s",
        vm_state="active",
        flavor=flavor_with(specs, 2),
        image=ImageMeta(id="i", properties=image),
    )


@pytest.mark.parametrize(
    ("specs", "image", "special"),
    [
        ({}, {}, False),
        ({}, {"hw_disk_bus": "virtio"}, False),
        ({"hw:cpu_cores": "2", "trait:A": "required", "resources:VCPU": "0"}, {}, True),
        ({"hw:watchdog_action": "none", "resources:MEMORY_MB": "1"}, {}, False),
        ({"hw:numa_nodes": "1"}, {}, True),
        ({}, {"hw_cpu_policy": "dedicated"}, True),
        ({FLAVOR_KEY: "a:1"}, {}, True),
        ({"resources:CUSTOM_PMEM": "1"}, {}, True),
        ({"resources1:CUSTOM_PMEM": "1"}, {}, True),
    ],
)
def test_who_may_hold_more_than_allocations(
    specs: dict[str, str], image: dict[str, str], special: bool
) -> None:
    assert is_special(server(specs, **image)) is special


async def test_a_special_servers_claim_is_found_and_released(claims: Claims, db: Database) -> None:
    instance = server(SPECIAL)
    claim = await taken(claims, "s1", SPECIAL)
    assert await claims.of(instance) == claim
    await claims.release_server(instance)
    assert await claims.of(instance) is None and (await there(db)).guests == ()


@pytest.mark.capability("CL-3")
async def test_what_is_given_back_is_what_was_claimed(claims: Claims, db: Database) -> None:
    """Whatever the server has become meanwhile."""
    await taken(claims, "s1", SPECIAL)
    await claims.release_server(server({"hw:numa_nodes": "2"}))
    now = await there(db)
    assert now.guests == () and not any(each.holder for each in now.devices)


@pytest.mark.capability("RT-5")
def test_ports_want_devices_beside_those_of_the_flavor(claims_without_database: Claims) -> None:
    port = PciRequest(id="port", count=1, specs=({"physical_network": "a"},), port_id="p1")
    wanted = claims_without_database.wanted(flavor_with(SPECIAL), {}, (port,))
    assert [(each.alias, each.port_id) for each in wanted.pci] == [("a", None), (None, "p1")]
    assert claims_without_database.wanted(flavor_with({}), {}, (port,)).pci == (port,)


@pytest.mark.capability("RT-6")
async def test_listed_items_are_given_out_one_by_one(claims: Claims) -> None:
    first = await taken(claims, "s1", {}, also_booked={ITEM: 3})
    assert [item.identifier for item in first.items] == ["ns0", "ns1", "ns2"]
    second = await taken(claims, "s2", {}, also_booked={ITEM: 1})
    assert [item.identifier for item in second.items] == ["ns3"]
    elsewhere = await taken(claims, "s3", {}, at=OTHER, also_booked={ITEM: 1})
    assert elsewhere.items == ()  # that provider lists none


@pytest.mark.capability("RT-6")
async def test_too_few_items_are_a_claim_that_fails(claims: Claims, db: Database) -> None:
    await db.write(
        lambda tx: host_report.take_over(
            tx, report(items=(Item(provider=HOST, resource_class=ITEM, identifier="ns0"),))
        )
    )
    assert await take(claims, "s1", {}, also_booked={ITEM: 2}) == f"2 of {ITEM} wanted, 1 are free"
    assert await claims._placement.held("s1") == {}


async def test_one_consumer_is_on_one_host(claims: Claims, db: Database) -> None:
    await taken(claims, "s1", SPECIAL)
    with pytest.raises(Conflict):
        await take(claims, "s1", SPECIAL, at=OTHER)
    assert (await there(db, OTHER)).guests == ()


async def test_devices_that_are_in_placement_are_those_that_were_booked(claims: Claims, db: Database) -> None:
    tagged = tuple(device(n, tags={"rp_uuid": f"rp-{n}"}) for n in (1, 2, 3))
    await db.write(lambda tx: host_report.take_over(tx, report(pci_devices=tagged)))
    for n in (1, 2, 3):
        await claims._placement.report(f"rp-{n}", f"rp-{n}", {"CUSTOM_X": Inventory(total=1)}, ())
    wanted = claims.wanted(flavor_with({FLAVOR_KEY: "a:1"}), {})
    both = {HOST: {"VCPU": 1}, "rp-2": {"CUSTOM_X": 1}}
    found = await claims.claim("s1", HOST, wanted, both, PROJECT, USER)
    assert isinstance(found, Claim) and [each.address for each in found.devices] == ["0000:02:00.0"]
    loose = await claims.claim("s2", HOST, wanted, {HOST: {"VCPU": 1}}, PROJECT, USER)
    assert isinstance(loose, Claim) and [each.address for each in loose.devices] == ["0000:01:00.0"]


@pytest.mark.capability("RT-4", "CL-9")
async def test_a_move_keeps_the_old_side_under_its_own_name(claims: Claims, db: Database) -> None:
    old = await taken(claims, "s1", SPECIAL)
    await claims.set_aside("s1", "m1")
    await claims.set_aside("s1", "m1")
    new = await taken(claims, "s1", {"hw:cpu_policy": "dedicated"}, at=OTHER, vcpus=4)
    assert len(cpus(new)) == 4  # the new flavor's, and none of the old one's devices
    kept = await db.read(lambda tx: host_resources.claim_of(tx, "m1"))
    assert kept == replace(old, consumer="m1") and kept is not None and kept.instance_uuid == "s1"
    assert (await there(db)).devices[0].holder == "m1"
    assert await claims._placement.held("m1") == {HOST: {"PCPU": 2, "MEMORY_MB": 1024}}
    both = await db.read(lambda tx: host_resources.claims_of_instance(tx, "s1"))
    assert {claim.consumer for claim in both} == {"s1", "m1"}


@pytest.mark.capability("RT-18")
async def test_both_sides_may_be_on_one_host(claims: Claims, db: Database) -> None:
    old = await taken(claims, "s1", SPECIAL)
    await claims.set_aside("s1", "m1")
    new = await taken(claims, "s1", SPECIAL)
    assert not set(cpus(old)) & set(cpus(new)) and old.devices != new.devices
    assert len((await there(db)).guests) == 2


@pytest.mark.capability("RT-8")
async def test_a_move_that_is_confirmed_drops_the_old_side(claims: Claims, db: Database) -> None:
    await taken(claims, "s1", SPECIAL)
    await claims.set_aside("s1", "m1")
    new = await taken(claims, "s1", SPECIAL, at=OTHER)
    await claims.drop_old("m1")
    await claims.drop_old("m1")
    now = await there(db)
    assert now.guests == () and not any(each.holder for each in now.devices)
    assert await claims.of(server(SPECIAL)) == new
    assert await claims._placement.held("s1") == {OTHER: {"PCPU": 2, "MEMORY_MB": 1024}}


@pytest.mark.capability("RT-9", "CL-12", "RT-10")
async def test_a_move_that_is_given_up_drops_the_new_side(claims: Claims, db: Database) -> None:
    old = await taken(claims, "s1", SPECIAL)
    await claims.set_aside("s1", "m1")
    await taken(claims, "s1", SPECIAL, at=OTHER)
    for _ in range(2):
        await claims.take_back("s1", "m1")
        assert await claims.of(server(SPECIAL)) == old
        assert (await there(db, OTHER)).guests == ()
        assert await claims._placement.held("s1") == {HOST: {"PCPU": 2, "MEMORY_MB": 1024}}
        assert await claims._placement.held("m1") == {}


async def test_a_move_that_got_no_new_side_is_given_up_as_well(claims: Claims) -> None:
    old = await taken(claims, "s1", SPECIAL)
    await claims.set_aside("s1", "m1")
    await claims.take_back("s1", "m1")
    assert await claims.of(server(SPECIAL)) == old


def port(request_id: str, *, policy: str | None = None, count: int = 1) -> PciRequest:
    return PciRequest(id=request_id, count=count, specs=({},), port_id=request_id, numa_policy=policy)


def with_port(vnic_type: str) -> Instance:
    vif = Vif(port_id="p1", mac="", network_id="n", network_name="n", vnic_type=vnic_type)
    return replace(server({}), vifs=(vif,))


def test_a_port_that_is_a_device_makes_a_server_special() -> None:
    assert is_special(with_port("direct")) and not is_special(with_port("normal"))


@pytest.mark.capability("RT-12")
async def test_devices_come_and_go_while_a_server_runs(claims: Claims, db: Database) -> None:
    first = await taken(claims, "s1", SPECIAL)
    instance = server(SPECIAL)
    for _ in range(2):
        more = await claims.attach(instance, HOST, (port("p1", policy="preferred"),))
        assert isinstance(more, Claim) and await claims.of(instance) == more
        assert (more.numa, len(more.devices), len(more.requests)) == (first.numa, 2, 2)
        assert [each.holder for each in (await there(db)).devices] == ["s1", "s1"]
    reason = await claims.attach(instance, HOST, (port("p2"),))
    assert isinstance(reason, str) and "claim of PCI devices failed" in reason
    for _ in range(2):
        await claims.detach(instance, "p1")
        assert await claims.of(instance) == first
        assert [each.holder for each in (await there(db)).devices] == ["s1", None]


@pytest.mark.capability("RT-12")
async def test_devices_must_be_near_the_cells_that_a_server_has(claims: Claims, db: Database) -> None:
    await taken(claims, "s1", SPECIAL)  # in cell 0, whose only device it has
    reason = await claims.attach(server(SPECIAL), HOST, (port("p1", policy="required"),))
    assert reason == "no free devices are near the server's NUMA cells"
    assert [each.holder for each in (await there(db)).devices] == ["s1", None]


@pytest.mark.capability("RT-12")
async def test_a_server_that_had_no_claim_has_one_as_long_as_it_has_devices(
    claims: Claims, db: Database
) -> None:
    instance = with_port("direct")
    await claims.detach(instance, "p1")
    made = await claims.attach(instance, HOST, (port("p1", count=2),))
    assert isinstance(made, Claim) and len(made.devices) == 2
    with pytest.raises(Conflict):
        await claims.attach(instance, OTHER, (port("p2"),))
    await db.write(lambda tx: host_report.take_over(tx, report(pci_devices=(device(1, numa_cell=0),))))
    await claims.detach(instance, "p1")
    assert await claims.of(instance) is None
    assert [each.device.address for each in (await there(db)).devices] == ["0000:01:00.0"]


@pytest.mark.capability("CL-10")
def test_a_live_migration_takes_no_devices_of_flavors(claims_without_database: Claims) -> None:
    claims = claims_without_database
    wanted = claims.wanted(flavor_with(SPECIAL), {})
    with pytest.raises(HostFault, match="cannot be migrated live"):
        claims.check_live(wanted, None)
    port = PciRequest(id="port", count=1, specs=({},), port_id="p1")
    assert claims.check_live(Wanted(pci=(port,)), None) == Wanted()


@pytest.fixture
def claims_without_database() -> Claims:
    nothing: Any = None
    return Claims(nothing, nothing, aliases=ALIASES)


@pytest.mark.capability("CL-11")
async def test_a_live_migration_keeps_the_size_of_pages(claims: Claims, db: Database) -> None:
    specs = {"hw:mem_page_size": "any", "hw:cpu_policy": "dedicated"}
    current = await taken(claims, "s1", specs)
    assert current.numa is not None and current.numa.cells[0].page_size_kib == 2048
    wanted = claims.check_live(claims.wanted(flavor_with(specs, 2), {}), current)
    small = host(*(cell(n, large=0) for n in range(2)))
    await db.write(lambda tx: host_report.take_over(tx, report(OTHER, numa=small)))
    await claims.set_aside("s1", "m1")
    found = await claims.claim("s1", OTHER, wanted, {OTHER: {"PCPU": 2}}, PROJECT, USER)
    assert isinstance(found, str) and "2048" in found


async def test_a_function_and_its_parts_are_not_both_claimed(claims: Claims, db: Database) -> None:
    whole = device(1, kind=PF)
    parts = tuple(device(1 + n, kind=VF, parent=whole.address) for n in (1, 2))
    await db.write(lambda tx: host_report.take_over(tx, report(pci_devices=(whole, *parts))))
    await taken(claims, "s1", {FLAVOR_KEY: "vf:1"})
    free = Claims(
        db,
        claims._placement,
        aliases=read_aliases(
            ['{"name": "pf", "vendor_id": "8086", "product_id": "1234", "device_type": "type-PF"}']
        ),
    )
    assert isinstance(await take(free, "s2", {FLAVOR_KEY: "pf:1"}), str)
    await claims.release("s1")
    await taken(free, "s2", {FLAVOR_KEY: "pf:1"})
    assert isinstance(await take(claims, "s1", {FLAVOR_KEY: "vf:1"}), str)


@pytest.mark.capability("RT-1")
async def test_racing_claims_never_take_the_same(claims: Claims, db: Database) -> None:
    """Many at once, coming and going; each has what it got for itself alone."""

    async def one(number: int) -> None:
        consumer = f"s{number}"
        for turn in range(3):
            found = await take(claims, consumer, SPECIAL if number % 3 else {"hw:cpu_policy": "dedicated"})
            if isinstance(found, Claim) and (turn + number) % 2:
                await claims.release(consumer)
            elif isinstance(found, Claim):
                return

    await asyncio.gather(*(one(number) for number in range(16)))
    now = await there(db)
    assert shortfalls(now) == []
    pinned = [cpu for guest in now.guests for each in guest.cells for cpu in each.pinning.values()]
    assert len(pinned) == len(set(pinned))
    everybody = await db.read(host_resources.all_claims)
    held = [each.address for claim in everybody for each in claim.devices]
    assert len(held) == len(set(held))
    assert {each.device.address for each in now.devices if each.holder} == set(held)
    assert await db.read(bookings.audit) == []
    assert 2 <= len(everybody) <= 8


async def test_many_hosts_are_read_at_once(claims: Claims, db: Database) -> None:
    await taken(claims, "s1", SPECIAL)
    await taken(claims, "s2", SPECIAL, at=OTHER)
    found = await db.read(host_resources.read_many)
    assert found == {HOST: await there(db), OTHER: await there(db, OTHER)}
    assert set(await db.read(lambda tx: host_resources.read_many(tx, [OTHER]))) == {OTHER}
    assert await db.read(host_resources.generations) == {
        compute_id: each.generation for compute_id, each in found.items()
    }
