"""Why a host is not taken: each filter alone, and in which order they speak."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.model.host import Inventory
from kilonova.scheduler.comparison import matches
from kilonova.scheduler.filters.image import version_matches
from kilonova.scheduler.request import ServerRequest
from tests.unit.scheduler.states import STOCK, World, request, with_filters

RAM = "MEMORY_MB"


def why_not(wanted: ServerRequest, **host: Any) -> str:
    world = World()
    world.add(**host)
    return world.why_not(wanted, host.get("name", "h1"))


def test_a_host_with_room_will_do() -> None:
    assert why_not(request()) == ""


def test_a_host_where_it_failed_before_says_why() -> None:
    assert why_not(request(tried={"h1": "disk full"})) == "it failed there: disk full"
    assert why_not(request(tried={"h2": "disk full"})) == ""
    assert why_not(request(ignored={"h1": "it is being left"})) == "it is being left"


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ({"disabled": True, "disabled_reason": "two fans"}, "disabled (two fans)"),
        ({"disabled": True}, "disabled (no reason given)"),
        ({"forced_down": True}, "forced down"),
        ({"forced_down": True, "up": False}, "forced down"),
        ({"up": False}, "its agent does not answer"),
    ],
)
def test_a_host_that_is_out_of_service(host: dict[str, Any], reason: str) -> None:
    assert why_not(request(), **host) == reason
    world = with_filters("AllHostsFilter")
    world.add(**host)
    assert world.why_not(request()) == ""  # an operator may go without the filter


def test_only_the_host_or_node_that_was_asked_for() -> None:
    for wanted, reason in (
        (request(requested_host="h1"), ""),
        (request(requested_node="h1.example"), ""),
        (request(requested_host="h1", requested_node="h1.example"), ""),
        (request(requested_host="h2"), "the host 'h2' was asked for"),
        (request(requested_node="h2.example"), "the node 'h2.example' was asked for"),
        (request(requested_host="h1", requested_node="x"), "the node 'x' was asked for"),
    ):
        assert why_not(wanted) == reason


def test_zones() -> None:
    assert why_not(request(), availability_zone="east") == ""
    assert why_not(request(availability_zone="east"), availability_zone="east") == ""
    assert why_not(request(availability_zone="nova")) == ""
    assert (
        why_not(request(availability_zone="west"), availability_zone="east") == "in zone 'east', not 'west'"
    )


@pytest.mark.parametrize(
    ("properties", "host", "reason"),
    [
        ({"hw_architecture": "x86_64"}, {}, ""),
        ({"hw_architecture": "amd64"}, {}, ""),
        ({"architecture": "aarch64"}, {}, "its CPUs are x86_64, the image is for aarch64"),
        ({"hw_architecture": "x86_64", "architecture": "aarch64"}, {}, ""),
        ({"hw_architecture": "aarch64"}, {"cpu_info": {}}, ""),  # it does not say what it has
        ({"img_hv_type": "kvm"}, {}, ""),
        ({"img_hv_type": "QEMU"}, {"hypervisor_type": "KVM"}, ""),
        ({"hypervisor_type": "xen"}, {}, "its hypervisor is qemu, the image is for xen"),
        (
            {"img_hv_type": "qemu"},
            {"hypervisor_type": "fake"},
            "its hypervisor is fake, the image is for qemu",
        ),
        ({"hw_vm_mode": "hvm"}, {}, ""),
        ({"vm_mode": "xen"}, {}, "it runs full virtual machines, the image is for the mode 'xen'"),
        ({"img_hv_requested_version": ">=7.2,!=7.2.2"}, {}, ""),
        (
            {"img_hv_requested_version": ">=8"},
            {},
            "its hypervisor's version is 7.2.1, the image asks for >=8",
        ),
    ],
)
def test_what_the_image_asks_for(properties: dict[str, str], host: dict[str, Any], reason: str) -> None:
    assert why_not(request(image_properties=properties), **host) == reason


def test_images_without_an_architecture_have_the_operators() -> None:
    world = World(image_properties_default_architecture="aarch64")
    world.add()
    assert world.why_not(request()) == "its CPUs are x86_64, the image is for aarch64"
    assert world.why_not(request(image_properties={"hw_architecture": "x86_64"})) == ""


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("6.2.1", True),
        ("==6.2.1", True),
        ("6.2", False),
        ("<6.3,>6.2", True),
        ("<=6.2.1", True),
        (">6.2.1", False),
        ("!=6.2.1", False),
        (">= 6", True),
        ("~6", False),
        ("six", False),
        ("", False),
        ("6.2.1.0", False),
    ],
)
def test_versions_that_an_image_asks_for(requirement: str, expected: bool) -> None:
    assert version_matches(6_002_001, requirement) is expected


def test_traits_that_must_or_must_not_be_there() -> None:
    has = {"traits": frozenset({"HW_CPU_X86_AVX2"})}
    for wanted, reason in (
        (request(required=["HW_CPU_X86_AVX2"]), ""),
        (request(forbidden=["HW_CPU_X86_AVX2"]), "it has the forbidden trait HW_CPU_X86_AVX2"),
        (request(required=["CUSTOM_FAST"]), "it lacks the trait CUSTOM_FAST"),
        (request(forbidden=["CUSTOM_FAST"]), ""),
    ):
        assert why_not(wanted, **has) == reason


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"hypervisor_type": "QEMU"}, ""),
        ({"hypervisor_type": "<or> xen <or> QEMU"}, ""),
        ({"hypervisor_type": "s== xen"}, "its hypervisor_type is 'QEMU', the flavor asks for 's== xen'"),
        ({"hypervisor_version": ">= 7002001"}, ""),
        (
            {"hypervisor_version": ">= 8000000"},
            "its hypervisor_version is '7002001', the flavor asks for '>= 8000000'",
        ),
        ({"vcpus_total": "= 4", "free_ram_mb": "<= 3484"}, ""),
        ({"free_ram_mb": ">= 3485"}, "its free_ram_mb is '3484', the flavor asks for '>= 3485'"),
        ({"num_instances": "== 3", "num_io_ops": "== 2", "failed_builds": "== 1", "vcpus_used": "== 1"}, ""),
        ({"cpu_info:arch": "x86_64"}, ""),
        ({"aggregates": "<in> a1"}, ""),
        (
            {"cpu_info:vendor": "x"},
            "it does not say what its cpu_info:vendor is, and the flavor asks for 'x'",
        ),
        ({"host:deep": "x"}, "it does not say what its host:deep is, and the flavor asks for 'x'"),
        ({"nothing": "x"}, "it does not say what its nothing is, and the flavor asks for 'x'"),
    ],
)
def test_capabilities_that_a_flavor_asks_for(spec: dict[str, str], reason: str) -> None:
    world = World()
    world.add(instances=3, io_ops=2, failed_builds=1, used={"VCPU": 1, RAM: 100})
    world.aggregate("h1")
    asked = {f"capabilities:{name}": value for name, value in spec.items()}
    assert world.why_not(request(extra_specs=asked)) == reason
    bare = {name: value for name, value in spec.items() if ":" not in name}
    if bare:  # as in Nova, a key without a scope counts as well
        assert world.why_not(request(extra_specs=bare)) == reason
    others = {f"acme:{name}": value for name, value in spec.items()}
    assert world.why_not(request(extra_specs={**others, "group_policy": "none"})) == ""


@pytest.mark.parametrize(
    ("have", "wanted", "expected"),
    [
        (4, "4", True),
        (4, "= 4", True),
        (5, "= 4", True),
        (3, "= 4", False),
        (4, "== 4.0", True),
        (4, "!= 4", False),
        (4, "<= 3", False),
        ("four", ">= 3", False),
        (4, ">= four", False),
        ("b", "s< c", True),
        ("b", "s> c", False),
        ("b", "s<= b", True),
        ("b", "s>= c", False),
        ("b", "s!= b", False),
        ("abc", "<in> b", True),
        (["abc"], "<in> b", False),
        (["avx", "sse"], "<in> avx", True),
        (["avx", "sse"], "<all-in> avx sse", True),
        (["avx"], "<all-in> avx sse", False),
        ("b", "<or> a <or> b", True),
        ("<or>", "<or> a <or> b", False),
        ("two words", "two words", True),
        ("two", "two words", False),
        ("=", "=", True),
        ("", "", True),
    ],
)
def test_how_facts_are_compared(have: object, wanted: str, expected: bool) -> None:
    assert matches(have, wanted) is expected


@pytest.mark.parametrize(
    ("resources", "reason"),
    [
        ({"VCPU": 8}, ""),
        ({"VCPU": 9}, "9 vCPUs wanted, 8 free"),
        ({RAM: 3584}, ""),
        ({RAM: 3585}, "3585 MiB of memory wanted, 3584 free"),
        ({"DISK_GB": 50}, ""),
        ({"DISK_GB": 51}, "51 GiB of disk wanted, one server may have 50 at most"),
        ({"CUSTOM_GOLD": 1}, "it has no CUSTOM_GOLD"),
        ({"CUSTOM_PAIRS": 4}, ""),
        ({"CUSTOM_PAIRS": 3}, "3 CUSTOM_PAIRS wanted, one server may have 2 or more, in steps of 2"),
        ({"CUSTOM_PAIRS": 1}, "1 CUSTOM_PAIRS wanted, one server may have 2 or more, in steps of 2"),
        ({}, ""),
    ],
)
def test_room(resources: dict[str, int], reason: str) -> None:
    stock = {**STOCK, "CUSTOM_PAIRS": Inventory(total=10, min_unit=2, step_size=2)}
    assert why_not(request(resources=resources), inventories=stock) == reason


def test_room_is_what_is_not_used() -> None:
    assert why_not(request(resources={"VCPU": 2}), used={"VCPU": 6}) == ""
    assert why_not(request(resources={"VCPU": 3}), used={"VCPU": 6}) == "3 vCPUs wanted, 2 free"
    # More in use than there is, after the ratio was lowered.
    assert why_not(request(resources={"VCPU": 1}), used={"VCPU": 99}) == "1 vCPUs wanted, 0 free"
    assert why_not(request(), inventories={}) == "placement has no inventory of it"


def test_a_forced_host_is_only_refused_for_what_is_impossible() -> None:
    odd: dict[str, Any] = {"availability_zone": "east", "cpu_info": {"arch": "aarch64"}}
    order: dict[str, Any] = {
        "forced_host": "h1",
        "availability_zone": "west",
        "required": ["CUSTOM_FAST"],
        "image_properties": {"hw_architecture": "x86_64"},
    }
    assert why_not(request(**order), **odd) == ""
    assert why_not(request(**{**order, "forced_host": None, "forced_node": "h1.example"}), **odd) == ""
    assert why_not(request(**order, resources={"VCPU": 9}), **odd) == "9 vCPUs wanted, 8 free"
    assert why_not(request(**order), up=False) == "its agent does not answer"
    assert why_not(request(**order, tried={"h1": "x"}), **odd) == "it failed there: x"


def test_hosts_that_are_not_the_forced_one_are_not_looked_at() -> None:
    world = World()
    world.add("h1")
    world.add("h2", up=False)
    assert world.ranked(request(forced_host="h1")) == ["h1"]
    assert world.ranked(request(forced_host="h1", forced_node="h2.example")) == []
    assert world.ranked(request(forced_host="h3")) == []
    assert world.ranked(request(forced_host="h1")) == ["h1"]
    assert world.explain(request(forced_host="h1")).reasons == {}


def test_the_reason_is_the_first_in_the_order_of_the_filters() -> None:
    wanted = request(requested_host="h2", availability_zone="west", resources={"VCPU": 99})
    assert why_not(wanted, up=False) == "the host 'h2' was asked for"
    assert why_not(request(resources={"VCPU": 99}), up=False) == "its agent does not answer"
