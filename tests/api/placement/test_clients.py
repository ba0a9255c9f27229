"""The ``openstack resource`` and ``openstack trait`` commands of osc-placement, unmodified."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
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
