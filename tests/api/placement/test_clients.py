"""The ``openstack resource`` and ``openstack trait`` commands of osc-placement, unmodified."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kilonova.clock import SystemClock
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.services.identity import api as identity_api
from kilonova.services.identity.bootstrap import bootstrap
from kilonova.services.identity.builtin import BuiltinIdentity
from kilonova.services.identity.passwords import Cost, Passwords
from kilonova.services.placement import api as placement_api
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.web.server import ByPort, HttpServer, bind
from tests.api.clients import Clients, shell
from tests.api.placement.face import new

pytestmark = pytest.mark.asyncio(loop_scope="module")

As = Callable[..., Clients]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def as_user(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[As]:
    """Clients by user and microversion of a placement service that its own identity service guards."""
    directory, clock = tmp_path_factory.mktemp("clients"), SystemClock()
    db = SqliteDatabase(directory / "kilonova.db", clock)
    await bring_up(db)
    passwords = Passwords(clock, Cost(log_n=4, r=8, p=1))
    identity = BuiltinIdentity(db, clock, directory / "keys", passwords=passwords)
    await bootstrap(db, clock, "admin", "demo", passwords=passwords)
    sockets = [bind("127.0.0.1", 0), bind("127.0.0.1", 0)]
    one, two = (each.getsockname()[1] for each in sockets)
    urls = {"identity": f"http://127.0.0.1:{one}", "placement": f"http://127.0.0.1:{two}"}
    apps = {
        one: identity_api.app(identity, urls, urls["identity"]),
        two: placement_api.app(BuiltinPlacement(db, clock), identity),
    }
    server = HttpServer(ByPort(apps), sockets)
    await server.start()
    async with contextlib.AsyncExitStack() as stack:
        openstack = await stack.enter_async_context(shell())

        def clients(user: str = "admin", version: str = "1.39") -> Clients:
            more = {"username": user, "password": user, "project_name": user}
            return Clients(openstack, urls["identity"] + "/v3", placement_api_version=version, **more)

        yield clients
    await server.stop()
    identity.close()
    await db.close()


def rows(found: list[dict[str, Any]], *columns: str) -> list[tuple[Any, ...]]:
    return sorted(tuple(each[column] for column in columns) for each in found)


async def test_providers_and_inventories(as_user: As) -> None:
    admin = as_user()
    (host,) = await admin.openstack("resource provider create host1 -f json")
    id = host["uuid"]
    assert (host["name"], host["generation"], host["root_provider_uuid"]) == ("host1", 0, id)
    found = await admin.openstack(
        f"resource provider create child --parent-provider {id} -f json",
        f"resource provider inventory set {id} --resource VCPU=8 --resource VCPU:allocation_ratio=2.0 "
        "--resource MEMORY_MB=4096 --resource MEMORY_MB:reserved=512 -f json",
        f"resource provider inventory list {id} -f json",
        f"resource provider inventory show {id} VCPU -f json",
        f"resource provider inventory class set {id} VCPU --total 16 -f json",
        f"resource provider inventory set {id} --amend --resource DISK_GB=100 -f json",
        f"resource provider usage show {id} -f json",
        "resource provider list -f json",
        f"resource provider list --in-tree {id} -f json",
        "resource provider list --resource VCPU=16 -f json",
        f"resource provider show {id} -f json",
    )
    child, _, listed, vcpu, changed, amended, usage, every, tree, large, shown = found
    assert (child["parent_provider_uuid"], child["root_provider_uuid"]) == (id, id)
    assert rows(listed, "resource_class", "total", "reserved", "allocation_ratio") == [
        ("MEMORY_MB", 4096, 512, 1.0),
        ("VCPU", 8, 0, 2.0),
    ]
    assert (vcpu["total"], vcpu["used"], changed["total"]) == (8, 0, 16)
    assert {each["resource_class"] for each in amended} == {"VCPU", "MEMORY_MB", "DISK_GB"}
    assert rows(usage, "resource_class", "usage") == [("DISK_GB", 0), ("MEMORY_MB", 0), ("VCPU", 0)]
    assert {"host1", "child"} == {each["name"] for each in every} == {each["name"] for each in tree}
    assert [each["name"] for each in large] == ["host1"] and shown["generation"] == 3
    await admin.refused(f"resource provider delete {id}", "409", "children")
    await admin.openstack(
        f"resource provider set {child['uuid']} --name renamed --parent-provider {id}",
        f"resource provider delete {child['uuid']}",
        f"resource provider inventory delete {id} --resource-class DISK_GB",
        f"resource provider inventory delete {id}",
        f"resource provider delete {id}",
    )
    await admin.refused(f"resource provider show {id}", "404")


async def test_traits_aggregates_and_classes(as_user: As) -> None:
    admin = as_user()
    (host,) = await admin.openstack("resource provider create host2 -f json")
    id, aggregate = host["uuid"], new()
    found = await admin.openstack(
        "trait create CUSTOM_FAST",
        "trait list --name startswith:CUSTOM_ -f json",
        "trait show CUSTOM_FAST -f json",
        f"resource provider trait set {id} --trait CUSTOM_FAST --trait HW_CPU_X86_AVX -f json",
        f"resource provider trait list {id} -f json",
        "trait list --associated -f json",
        "resource provider list --required CUSTOM_FAST --forbidden HW_CPU_X86_AVX2 -f json",
        f"resource provider aggregate set {id} --aggregate {aggregate} --generation 1 -f json",
        f"resource provider aggregate list {id} -f json",
        f"resource provider list --member-of {aggregate} -f json",
        "resource class create CUSTOM_FPGA",
        "resource class list -f json",
        "resource class show CUSTOM_FPGA -f json",
        "resource class set CUSTOM_OTHER",
    )
    _, traits, shown, _, of_host, associated, required, _, aggregates, members, _, classes, fpga, _ = found
    assert rows(traits, "name") == [("CUSTOM_FAST",)] and shown == {"name": "CUSTOM_FAST"}
    assert rows(of_host, "name") == rows(associated, "name") == [("CUSTOM_FAST",), ("HW_CPU_X86_AVX",)]
    assert [each["uuid"] for each in required] == [each["uuid"] for each in members] == [id]
    assert rows(aggregates, "uuid") == [(aggregate,)]
    assert {"VCPU", "CUSTOM_FPGA"} <= {each["name"] for each in classes} and fpga["name"] == "CUSTOM_FPGA"
    await admin.refused("trait delete CUSTOM_FAST", "409", "in use")
    await admin.refused("trait create FAST", "400")
    await admin.openstack(
        f"resource provider trait delete {id}",
        "trait delete CUSTOM_FAST",
        "resource class delete CUSTOM_FPGA",
        f"resource provider delete {id}",
    )
    await admin.refused("trait show CUSTOM_FAST", "404")


@pytest.mark.parametrize("version", ["1.0", "1.11", "1.12", "1.28", "1.39"])
async def test_allocations_at_each_band(as_user: As, version: str) -> None:
    admin, consumer = as_user(version=version), new()
    (host,) = await as_user().openstack(f"resource provider create host-{version} -f json")
    id = host["uuid"]
    await admin.openstack(f"resource provider inventory set {id} --resource VCPU=4 --resource DISK_GB=10")
    owner = "--project-id p --user-id u" if version not in ("1.0",) else ""
    kind = "--consumer-type INSTANCE" if version == "1.39" else ""
    await admin.openstack(
        f"resource provider allocation set {consumer} {owner} {kind} --allocation rp={id},VCPU=3,DISK_GB=5"
    )
    show = "resource provider allocation show"
    (shown,) = await admin.openstack(f"{show} {consumer} -f json")
    assert [(each["resource_provider"], each["resources"]) for each in shown] == [
        (id, {"VCPU": 3, "DISK_GB": 5})
    ]
    (usage,) = await admin.openstack(f"resource provider usage show {id} -f json")
    assert rows(usage, "resource_class", "usage") == [("DISK_GB", 5), ("VCPU", 3)]
    too_much = f"resource provider allocation set {new()} {owner} {kind} --allocation rp={id},VCPU=2"
    await admin.refused(too_much, "409")
    if version >= "1.12":
        await admin.openstack(f"resource provider allocation unset {consumer} --resource-class DISK_GB")
        (usage,) = await as_user(version="1.37").openstack("resource usage show p -f json")
        assert rows(usage, "resource_class", "usage") == [("VCPU", 3)]
    await admin.openstack(f"resource provider allocation delete {consumer}", f"resource provider delete {id}")
    assert (await admin.openstack(f"{show} {consumer} -f json")) == [[]]


async def test_others_are_refused(as_user: As) -> None:
    for command in ("resource provider list", "resource class list", "trait list"):
        await as_user("demo").refused(command, "403")


async def test_candidates(as_user: As) -> None:
    """A host with two devices, and disks that it shares with another."""
    admin, aggregate = as_user(), new()

    async def provider(name: str, *resources: str, parent: str = "") -> str:
        above = f"--parent-provider {parent}" if parent else ""
        (made,) = await admin.openstack(f"resource provider create {name} {above} -f json")
        words = " ".join(f"--resource {each}" for each in resources)
        await admin.openstack(f"resource provider inventory set {made['uuid']} {words}")
        return str(made["uuid"])

    await admin.openstack("resource class create CUSTOM_CARD", "trait create CUSTOM_RED")
    host = await provider("host3", "VCPU=8", "MEMORY_MB=4096")
    red = await provider("card-red", "CUSTOM_CARD=1", parent=host)
    blue = await provider("card-blue", "CUSTOM_CARD=1", parent=host)
    disks = await provider("disks", "DISK_GB=100")
    await admin.openstack(
        f"resource provider trait set {red} --trait CUSTOM_RED",
        f"resource provider trait set {disks} --trait MISC_SHARES_VIA_AGGREGATE",
        f"resource provider aggregate set {host} --aggregate {aggregate} --generation 1",
        f"resource provider aggregate set {disks} --aggregate {aggregate} --generation 2",
    )
    names = {host: "host", red: "red", blue: "blue", disks: "disks"}

    async def listed(options: str, version: str = "1.39") -> list[str]:
        (found,) = await as_user(version=version).openstack(f"allocation candidate list {options} -f json")
        several: dict[int, list[str]] = {}
        for each in found:
            words = f"{names[each['resource provider']]}:{each['allocation']}"
            several.setdefault(each["#"], []).append(words)
        return sorted(" ".join(sorted(each)) for each in several.values())

    one = "--resource VCPU=1 --resource CUSTOM_CARD=1"
    for version in ("1.29", "1.37", "1.39"):  # the ones in between the client does not speak
        assert await listed(one, version) == [
            "blue:CUSTOM_CARD=1 host:VCPU=1",
            "host:VCPU=1 red:CUSTOM_CARD=1",
        ]
    assert await listed(one, "1.28") == []
    for version in ("1.10", "1.11", "1.12", "1.17", "1.28"):
        both = "--resource VCPU=1 --resource DISK_GB=5"
        assert await listed(both, version) == ["disks:DISK_GB=5 host:VCPU=1"]
    assert await listed(f"{one} --required CUSTOM_RED") == ["host:VCPU=1 red:CUSTOM_CARD=1"]
    assert await listed(f"{one} --forbidden CUSTOM_RED") == ["blue:CUSTOM_CARD=1 host:VCPU=1"]
    assert await listed(f"{one} --required CUSTOM_RED,HW_CPU_X86_AVX") == ["host:VCPU=1 red:CUSTOM_CARD=1"]
    assert len(await listed(f"{one} --limit 1")) == 1
    assert [len(await listed(f"{one} --member-of {each}")) for each in (aggregate, new())] == [2, 0]
    groups = "--resource VCPU=2 --group 1 --resource CUSTOM_CARD=1 --group 2 --resource CUSTOM_CARD=1"
    each = "blue:CUSTOM_CARD=1 host:VCPU=2 red:CUSTOM_CARD=1"
    assert await listed(f"{groups} --group-policy isolate") == [each, each]
    red_first = f"{groups} --required CUSTOM_RED --group-policy isolate"
    assert await listed(red_first) == [each]
    assert await listed(f"{red_first} --group A --resource DISK_GB=1") == [
        f"{each[:18]} disks:DISK_GB=1{each[18:]}"
    ]
    await admin.openstack(
        *(f"resource provider delete {each}" for each in (red, blue, host, disks)),
        "resource class delete CUSTOM_CARD",
        "trait delete CUSTOM_RED",
    )


async def test_candidates_that_cannot_be_asked_for(as_user: As) -> None:
    listing = "allocation candidate list --resource"
    await as_user().refused(f"{listing} VCPU=x", "400")
    await as_user().refused(f"{listing} NOPE=1", "400")
    await as_user(version="1.9").refused(f"{listing} VCPU=1", "1.10")
    await as_user("demo").refused(f"{listing} VCPU=1", "403")


async def test_many_at_once(as_user: As) -> None:
    """Inventories of all members of an aggregate, allocations that are looked at with their provider."""
    admin, aggregate, consumer = as_user(), new(), new()
    hosts = []
    for number in range(2):
        (made,) = await admin.openstack(f"resource provider create member{number} -f json")
        hosts.append(made["uuid"])
        await admin.openstack(
            f"resource provider aggregate set {made['uuid']} --aggregate {aggregate} --generation 0",
            f"resource provider inventory set {made['uuid']} --resource VCPU=4",
        )
    ratio = (
        f"resource provider inventory set {aggregate} --aggregate --amend "
        "--resource VCPU:allocation_ratio=4.0"
    )
    dry, real = await admin.openstack(f"{ratio} --dry-run -f json", f"{ratio} -f json")
    assert {each["allocation_ratio"] for each in (*dry, *real)} == {4.0}
    both = " ".join(f"--allocation rp={host},VCPU=3" for host in hosts)
    await admin.openstack(
        f"resource provider allocation set {consumer} {both} --project-id p --user-id u "
        "--consumer-type INSTANCE"
    )
    shown, usage, alone = await admin.openstack(
        f"resource provider show {hosts[0]} --allocations -f json",
        "resource usage show p -f json",
        f"resource provider allocation unset {consumer} --provider {hosts[1]} -f json",
    )
    assert shown["allocations"] == {consumer: {"resources": {"VCPU": 3}, "consumer_generation": 1}}
    assert usage, "a table of types since 1.38, or of classes"
    assert [each["resource_provider"] for each in alone] == [hosts[0]]
    await admin.openstack(
        f"resource provider allocation delete {consumer}",
        *(f"resource provider delete {host}" for host in hosts),
    )


async def test_no_command_is_left_out() -> None:
    """Every command that osc-placement has is run in this file."""
    text = " ".join(Path(__file__).read_text().split())
    known = {each.name.replace("_", " ") for each in entry_points(group="openstack.placement.v1")}
    assert len(known) >= 31
    assert {each for each in known if each not in text} == set()


async def test_the_sdk(as_user: As) -> None:
    def use(cloud: Any) -> list[Any]:
        placement = cloud.placement
        made = placement.create_resource_provider(name="sdk")
        placement.create_resource_provider_inventory(made, "VCPU", total=4)
        candidates = list(placement.allocation_candidates(resources="VCPU:1"))
        found = [
            placement.find_resource_provider("sdk").id == made.id,
            [set(each.allocations) == {made.id} for each in candidates],
            [each.total for each in placement.resource_provider_inventories(made)],
            placement.get_resource_class("VCPU").name,
            placement.create_trait("CUSTOM_SDK").name,
            "CUSTOM_SDK" in {each.name for each in placement.traits()},
        ]
        placement.delete_trait("CUSTOM_SDK")
        placement.delete_resource_provider(made)
        return found

    assert await as_user().sdk(use) == [True, [True], [4], "VCPU", "CUSTOM_SDK", True]
