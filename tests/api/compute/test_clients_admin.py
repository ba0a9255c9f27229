"""Administration by OpenStack's own clients, unmodified: the openstack command and openstacksdk."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.operations import create
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import holdings, member, settled
from kilonova.testing.simulated_hosts import simulated_hosts
from tests.api.compute.test_keypairs import ED25519, MD5
from tests.api.served import MEMBER, Served

JSON = ("-f", "json")


async def _boot(served: Served, name: str) -> str:
    cloud = served.cloud
    request = CreateServer(name=name, flavor_id="42", image_id=cloud.example_image)
    (made,) = await create.submit(cloud.cloud, member(cloud), request)
    assert (await settled(cloud, made.uuid, 60)).vm_state == "active"
    return made.uuid


async def _remove(served: Served, uuid: str) -> None:
    from kilonova.operations import delete

    await delete.submit(served.cloud.cloud, member(served.cloud), uuid)
    await settled(served.cloud, uuid, 60)
    assert (await holdings(served.cloud, uuid)).nothing


@pytest.fixture
def server(served: Served) -> Iterator[str]:
    """A running server of the project ``demo``."""
    uuid = served.run(_boot(served, "admin-clients"))
    yield uuid
    served.run(_remove(served, uuid))


@pytest.fixture
def host(served: Served) -> str:
    return str(served.openstack("hypervisor", "list", *JSON)[0]["Hypervisor Hostname"])


@pytest.fixture
def second_host(served: Served) -> Iterator[str]:
    """Another host, for as long as a test needs one."""
    hosts = simulated_hosts(served.cloud, "clients-host")
    served.run(hosts.__aenter__())
    yield "clients-host"
    served.run(hosts.__aexit__(None, None, None))
    for service in served.openstack("compute", "service", "list", "--host", "clients-host", *JSON):
        served.openstack("compute", "service", "delete", service["ID"])


def project(served: Served, name: str = "demo") -> str:
    assert served.cloud.accounts is not None
    return served.cloud.accounts.projects[name]


def provider_aggregates(served: Served, host: str) -> frozenset[str] | None:
    """What placement knows of a host; None when it does not know it."""
    found = served.run(served.cloud.placement.providers())
    return next((one.aggregates for one in found if one.name == host), None)


def test_hypervisors(served: Served, server: str, host: str) -> None:
    (listed,) = served.openstack("hypervisor", "list", *JSON)
    assert (listed["Hypervisor Type"], listed["State"]) == ("fake", "up")
    assert served.openstack("hypervisor", "list", "--matching", host[:2], *JSON) == [listed]
    for name in (host, listed["ID"]):
        shown = served.openstack("hypervisor", "show", name, *JSON)
        assert (shown["id"], shown["service_host"]) == (listed["ID"], host)
        assert (shown["state"], shown["status"], shown["aggregates"]) == ("up", "enabled", [])
    old = served.openstack("--os-compute-api-version", "2.87", "hypervisor", "show", host, *JSON)
    assert old["vcpus"] == 100_000 and old["running_vms"] >= 1 and old["cpu_info"]["model"] == "fake"
    stats = served.openstack("hypervisor", "stats", "show", *JSON)
    assert stats["count"] == 1 and stats["vcpus_used"] == old["vcpus_used"] >= 1
    assert "No" in served.openstack("hypervisor", "show", "nobody", fails=True)
    assert "403" in served.openstack("hypervisor", "list", cloud=MEMBER, fails=True)


def test_services(served: Served, second_host: str) -> None:
    binaries = {one["Binary"] for one in served.openstack("compute", "service", "list", *JSON)}
    assert binaries == {"nova-compute", "nova-conductor", "nova-scheduler"}

    def listed() -> Any:
        words = ("compute", "service", "list", "--host", second_host, "--service", "nova-compute", "--long")
        (found,) = served.openstack(*words, *JSON)
        return found

    first = listed()
    assert (first["Status"], first["State"], first["Zone"]) == ("enabled", "up", "nova")
    change = ("compute", "service", "set", second_host, "nova-compute")
    served.openstack(*change, "--disable", "--disable-reason", "two fans")
    assert (listed()["Status"], listed()["Disabled Reason"]) == ("disabled", "two fans")
    served.openstack(*change, "--down")
    assert (listed()["Forced Down"], listed()["State"]) == (True, "down")
    served.openstack(*change, "--up")
    served.openstack("--os-compute-api-version", "2.11", *change, "--enable")
    assert (listed()["Status"], listed()["State"], listed()["Disabled Reason"]) == ("enabled", "up", None)
    controller = ("compute", "service", "set", "nobody", "nova-compute", "--disable")
    assert "not found" in served.openstack(*controller, fails=True)
    served.openstack("compute", "service", "delete", first["ID"])
    assert provider_aggregates(served, second_host) is None
    words = ("compute", "service", "list", "--host", second_host)
    assert served.openstack(*words, *JSON) == []
    assert "failed to delete" in served.openstack("compute", "service", "delete", first["ID"], fails=True)


def test_a_service_with_servers_is_not_deleted(served: Served, server: str, host: str) -> None:
    (service,) = served.openstack("compute", "service", "list", "--service", "nova-compute", *JSON)
    told = served.openstack("compute", "service", "delete", service["ID"], fails=True)
    assert "hosting instances" in told


def test_zones_and_aggregates(served: Served, second_host: str) -> None:
    made = served.openstack("aggregate", "create", "--zone", "east", "--property", "ssd=yes", "rack", *JSON)
    assert (made["name"], made["availability_zone"]) == ("rack", "east")
    served.openstack("aggregate", "add", "host", "rack", second_host)
    shown = served.openstack("aggregate", "show", "rack", *JSON)
    assert provider_aggregates(served, second_host) == frozenset({shown["uuid"]})
    assert (shown["hosts"], shown["properties"]) == ([second_host], {"ssd": "yes"})
    zones = served.openstack("availability", "zone", "list", "--compute", "--long", *JSON)
    assert {
        (one["Zone Name"], one["Zone Status"], one["Host Name"], one["Service Name"]) for one in zones
    } >= {("east", "available", second_host, "nova-compute")}
    assert served.openstack("hypervisor", "show", second_host, *JSON)["aggregates"] == ["rack"]
    plain = served.openstack("availability", "zone", "list", "--compute", *JSON, cloud=MEMBER)
    assert [one["Zone Name"] for one in plain] == ["east", "nova"]
    served.openstack("aggregate", "set", "--name", "rack 1", "--property", "gpu=no", "rack")
    served.openstack("aggregate", "unset", "--property", "ssd", "rack 1")
    (listed,) = served.openstack("aggregate", "list", "--long", *JSON)
    assert (listed["Name"], listed["Properties"]) == ("rack 1", {"gpu": "no"})
    assert "400" in served.openstack("aggregate", "delete", "rack 1", fails=True)
    served.openstack("aggregate", "remove", "host", "rack 1", second_host)
    assert provider_aggregates(served, second_host) == frozenset()
    served.openstack("aggregate", "delete", "rack 1")
    assert served.openstack("aggregate", "list", *JSON) == []


def test_quotas(served: Served, server: str) -> None:
    def shown(*words: str, **how: Any) -> dict[str, Any]:
        return {
            one["Resource"]: one["Limit"] for one in served.openstack("quota", "show", *words, *JSON, **how)
        }

    assert (shown("demo")["instances"], shown("--default", "demo")["cores"]) == (10, 20)
    served.openstack("quota", "set", "--instances", "7", "--cores", "40", "--key-pairs", "3", "demo")
    found = shown("demo")
    assert (found["instances"], found["cores"], found["key-pairs"], found["ram"]) == (7, 40, 3, 51200)
    assert shown(cloud=MEMBER)["instances"] == 7
    used = served.openstack("quota", "show", "--usage", "demo", *JSON)
    by_name = {one["Resource"]: one for one in used}
    assert by_name["instances"]["In Use"] >= 1
    assert "already used" in served.openstack("quota", "set", "--instances", "0", "demo", fails=True)
    served.openstack("quota", "set", "--instances", "0", "--force", "demo")
    assert shown("demo")["instances"] == 0
    served.openstack("quota", "delete", "--compute", "demo")
    assert shown("demo")["instances"] == 10
    served.openstack("quota", "set", "--class", "--ram", "60000", "default")
    assert shown("demo")["ram"] == 60000
    served.openstack("quota", "set", "--class", "--ram", "51200", "default")
    assert "403" in served.openstack("quota", "set", "--cores", "1", "demo", cloud=MEMBER, fails=True)
    listed = served.openstack("quota", "list", "--compute", *JSON)
    assert isinstance(listed, list)


def test_limits(served: Served, server: str) -> None:
    def absolute(*words: str, **how: Any) -> dict[str, int]:
        found = served.openstack("limits", "show", "--absolute", *words, *JSON, **how)
        return {one["Name"]: one["Value"] for one in found}

    own = absolute(cloud=MEMBER)
    assert own["total_instances_used"] >= 1 and own["max_total_instances"] == 10
    assert absolute("--project", "demo") == own
    assert absolute("--reserved")["total_instances_used"] == 0
    assert served.openstack("limits", "show", "--rate", *JSON) == []
    refused = served.openstack("limits", "show", "--absolute", "--project", "admin", cloud=MEMBER, fails=True)
    assert refused


def test_usage(served: Served, server: str) -> None:
    by_project = {one["Project"]: one for one in served.openstack("usage", "list", *JSON)}
    mine = by_project[project(served)]
    assert len(mine["Servers"]) >= 1 and mine["CPU Hours"] > 0
    shown = served.openstack("usage", "show", "--project", "demo", *JSON)
    assert any(one["instance_id"] == server for one in shown["Servers"])
    own = served.openstack("usage", "show", *JSON, cloud=MEMBER)
    assert any(one["instance_id"] == server for one in own["Servers"])
    tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    start, end = (f"{tomorrow + datetime.timedelta(days=days):%Y-%m-%d}" for days in (0, 1))
    later = served.openstack("usage", "show", "--project", "demo", "--start", start, "--end", end, *JSON)
    assert later["CPU Hours"] == 0
    assert "Usage from" in served.openstack("usage", "show", "--project", "admin")  # which used nothing


def test_flavors(served: Served) -> None:
    sizes = ("--ram", "512", "--vcpus", "2", "--disk", "3", "--ephemeral", "1", "--swap", "64")
    made = served.openstack(
        "flavor", "create", *sizes, "--id", "cf1", "--private", "--project", "demo",
        "--property", "hw:cpu_policy=shared", "--description", "for clients", "cf", *JSON,
    )  # fmt: skip
    assert (made["id"], made["ram"], made["os-flavor-access:is_public"]) == ("cf1", 512, False)
    shown = served.openstack("flavor", "show", "cf", *JSON)
    assert shown["properties"] == {"hw:cpu_policy": "shared"} and shown["description"] == "for clients"
    assert shown["access_project_ids"] == [project(served)]
    assert served.openstack("flavor", "show", "cf", *JSON, cloud=MEMBER)["id"] == "cf1"
    served.openstack("flavor", "set", "--property", "a=b", "--no-property", "--description", "new", "cf")
    assert served.openstack("flavor", "show", "cf1", *JSON)["properties"] == {"a": "b"}
    served.openstack("flavor", "unset", "--property", "a", "--project", "demo", "cf")
    assert "No Flavor found" in served.openstack("flavor", "show", "cf", cloud=MEMBER, fails=True)
    served.openstack("flavor", "set", "--project", "demo", "cf")
    assert "cf" in {one["Name"] for one in served.openstack("flavor", "list", *JSON, cloud=MEMBER)}
    private = served.openstack("flavor", "list", "--private", "--long", "--min-ram", "512", *JSON)
    assert "cf1" in {one["ID"] for one in private}
    assert "already exists" in served.openstack("flavor", "create", *sizes, "cf", fails=True)
    served.openstack("flavor", "delete", "cf")
    assert "No Flavor found" in served.openstack("flavor", "show", "cf", fails=True)
    assert "403" in served.openstack("flavor", "create", "mine", cloud=MEMBER, fails=True)


def test_keypairs(served: Served, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(ED25519 + "\n")
    imported = ("keypair", "create", "--public-key", str(tmp_path / "key.pub"), "imported")
    assert served.openstack(*imported, *JSON, cloud=MEMBER)["fingerprint"] == MD5
    private = tmp_path / "private"
    served.openstack("keypair", "create", "--private-key", str(private), "made", cloud=MEMBER)
    assert "PRIVATE KEY" in private.read_text()
    shown = served.openstack("keypair", "show", "imported", *JSON, cloud=MEMBER)
    assert (shown["type"], shown["fingerprint"]) == ("ssh", MD5)
    public = served.openstack("keypair", "show", "--public-key", "imported", cloud=MEMBER)
    assert public.strip() == ED25519
    listed = served.openstack("keypair", "list", *JSON, cloud=MEMBER)
    assert {one["Name"] for one in listed} == {"imported", "made"}
    of_user = served.openstack("keypair", "list", "--user", "demo", *JSON)
    assert {one["Name"] for one in of_user} == {"imported", "made"}
    assert served.openstack("keypair", "list", *JSON) == []
    served.openstack("keypair", "delete", "imported", "made", cloud=MEMBER)
    assert served.openstack("keypair", "list", *JSON, cloud=MEMBER) == []
    assert served.openstack("keypair", "show", "imported", cloud=MEMBER, fails=True)


def test_versions_and_extensions(served: Served) -> None:
    found = served.openstack("versions", "show", "--service", "compute", *JSON)
    by_version = {one["Version"]: one for one in found}
    assert (by_version["2.1"]["Status"], by_version["2.1"]["Max Microversion"]) == ("CURRENT", "2.104")
    assert by_version["2.0"]["Status"] == "SUPPORTED"
    aliases = {one["Alias"] for one in served.openstack("extension", "list", "--compute", *JSON)}
    assert {"os-keypairs", "os-hypervisors"} <= aliases
    bad = served.openstack("--os-compute-api-version", "2.999", "flavor", "list", fails=True)
    assert "2.999" in bad or "406" in bad or "not supported" in bad


def test_the_sdk_administers(served: Served, server: str, second_host: str) -> None:
    with served.sdk() as admin, served.sdk(MEMBER) as demo:
        compute = admin.compute
        hypervisors = {one.name: one for one in compute.hypervisors(details=True, with_servers=True)}
        assert any(one["uuid"] == server for host in hypervisors.values() for one in host.servers)
        found = compute.find_hypervisor(second_host)
        assert compute.get_hypervisor(found.id).service_details["host"] == second_host
        (service,) = compute.services(host=second_host, binary="nova-compute")
        compute.disable_service(service, disabled_reason="fans")
        (service,) = compute.services(host=second_host)
        assert (service.status, service.disabled_reason) == ("disabled", "fans")
        compute.update_service_forced_down(service, forced=True)
        (service,) = compute.services(host=second_host)
        assert (service.is_forced_down, service.state) == (True, "down")
        quota = compute.get_quota_set(project(served), usage=True)
        assert quota.instances == 10 and quota.usage["instances"] >= 1
        compute.update_quota_set(project(served), cores=30)
        assert demo.compute.get_limits().absolute.total_cores == 30
        compute.revert_quota_set(project(served))
        assert demo.get_compute_limits().max_total_cores == 20
        week = datetime.timedelta(days=7)
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        usage = compute.get_usage(project(served), now - week, now + week)
        assert usage.total_vcpus_usage > 0 and len(usage.server_usages) >= 1
        assert {one.name for one in demo.compute.availability_zones()} == {"nova"}
        flavor = compute.create_flavor(name="sdk", ram=64, vcpus=1, disk=0, is_public=False)
        compute.create_flavor_extra_specs(flavor, {"a": "b"})
        compute.flavor_add_tenant_access(flavor.id, project(served))
        assert demo.compute.find_flavor("sdk", get_extra_specs=True).extra_specs == {"a": "b"}
        compute.delete_flavor(flavor)
        assert demo.compute.find_flavor("sdk") is None
