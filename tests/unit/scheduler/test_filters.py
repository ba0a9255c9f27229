"""Why a host is not taken: each filter alone, and in which order they speak."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.model.flavor import Flavor
from kilonova.model.host import Inventory
from kilonova.scheduler import filters
from kilonova.scheduler.capabilities import matches
from kilonova.scheduler.request import HostState, ServerRequest
from kilonova.scheduler.select import rank
from tests.unit.scheduler.states import request, state

RAM = "MEMORY_MB"


def why_not(wanted: ServerRequest, host: HostState) -> str:
    """The reason for the host; empty when it would do."""
    reasons: dict[str, str] = {}
    found = rank(wanted, [host], reasons)
    assert bool(found) == (not reasons)
    return reasons.get(host.host.host, "")


def test_a_host_with_room_will_do() -> None:
    assert why_not(request(), state()) == ""


def test_a_host_where_it_failed_before_says_why() -> None:
    assert why_not(request(tried={"h1": "disk full"}), state("h1")) == "it failed there: disk full"
    assert why_not(request(tried={"h1": "disk full"}), state("h2")) == ""


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ({"disabled": True, "disabled_reason": "two fans"}, "disabled (two fans)"),
        ({"disabled": True}, "disabled (no reason given)"),
        ({"forced_down": True, "up": False}, "forced down"),
        ({"up": False}, "its agent does not answer"),
    ],
)
def test_a_host_that_is_out_of_service(host: dict[str, Any], reason: str) -> None:
    assert why_not(request(), state(**host)) == reason


def test_only_the_host_or_node_that_was_asked_for() -> None:
    for wanted, reason in (
        (request(requested_host="h1"), ""),
        (request(requested_node="h1.example"), ""),
        (request(requested_host="h1", requested_node="h1.example"), ""),
        (request(requested_host="h2"), "the host 'h2' was asked for"),
        (request(requested_node="h2.example"), "the node 'h2.example' was asked for"),
        (request(requested_host="h1", requested_node="x"), "the node 'x' was asked for"),
    ):
        assert why_not(wanted, state("h1")) == reason


def test_zones() -> None:
    assert why_not(request(), state(zone="east")) == ""
    assert why_not(request(availability_zone="east"), state(zone="east")) == ""
    assert why_not(request(availability_zone="west"), state(zone="east")) == "in zone 'east', not 'west'"


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
    ],
)
def test_what_the_image_asks_for(properties: dict[str, str], host: dict[str, Any], reason: str) -> None:
    assert why_not(request(image_properties=properties), state(**host)) == reason


@pytest.mark.parametrize("source", ["extra_specs", "image_properties"])
def test_traits_that_must_or_must_not_be_there(source: str) -> None:
    host = state(traits=frozenset({"HW_CPU_X86_AVX2"}))
    for spec, reason in (
        ({"trait:HW_CPU_X86_AVX2": "required"}, ""),
        ({"trait:HW_CPU_X86_AVX2": "forbidden"}, "it has the forbidden trait HW_CPU_X86_AVX2"),
        ({"trait:CUSTOM_FAST": "required"}, "it lacks the trait CUSTOM_FAST"),
        ({"trait:CUSTOM_FAST": "forbidden"}, ""),
        ({"trait1:CUSTOM_FAST": "required"}, "it lacks the trait CUSTOM_FAST"),
        ({"traitor": "required"}, ""),
    ):
        assert why_not(request(**{source: spec}), host) == reason


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"hypervisor_type": "QEMU"}, ""),
        ({"hypervisor_type": "<or> xen <or> QEMU"}, ""),
        ({"hypervisor_type": "s== xen"}, "its hypervisor_type is 'QEMU', the flavor asks for 's== xen'"),
        ({"hypervisor_version": ">= 1"}, ""),
        ({"hypervisor_version": ">= 2"}, "its hypervisor_version is '1', the flavor asks for '>= 2'"),
        ({"vcpus_total": "= 4", "free_ram_mb": "<= 3584"}, ""),
        ({"cpu_info:arch": "x86_64"}, ""),
        (
            {"cpu_info:vendor": "x"},
            "it does not say what its cpu_info:vendor is, and the flavor asks for 'x'",
        ),
        ({"host:deep": "x"}, "it does not say what its host:deep is, and the flavor asks for 'x'"),
        ({"nothing": "x"}, "it does not say what its nothing is, and the flavor asks for 'x'"),
    ],
)
def test_capabilities_that_a_flavor_asks_for(spec: dict[str, str], reason: str) -> None:
    asked = {f"capabilities:{name}": value for name, value in spec.items()}
    assert why_not(request(extra_specs=asked), state()) == reason
    others = {f"acme:{name}": value for name, value in spec.items()}
    assert why_not(request(extra_specs={**others, "capabilities": "x"}), state()) == ""


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
    ],
)
def test_room(resources: dict[str, int], reason: str) -> None:
    assert why_not(request(resources=resources), state()) == reason


def test_room_is_what_is_not_used() -> None:
    assert why_not(request(resources={"VCPU": 2}), state(used={"VCPU": 6})) == ""
    assert why_not(request(resources={"VCPU": 3}), state(used={"VCPU": 6})) == "3 vCPUs wanted, 2 free"
    # More in use than there is, after the ratio was lowered.
    assert why_not(request(resources={"VCPU": 1}), state(used={"VCPU": 99})) == "1 vCPUs wanted, 0 free"
    assert why_not(request(), state(inventories={})) == "placement has no inventory of it"


def test_a_forced_host_is_only_refused_for_what_is_impossible() -> None:
    odd = state("h1", zone="east", traits=frozenset(), cpu_info={"arch": "aarch64"})
    order = {
        "forced_host": "h1",
        "availability_zone": "west",
        "extra_specs": {"trait:CUSTOM_FAST": "required"},
        "image_properties": {"hw_architecture": "x86_64"},
    }
    assert why_not(request(**order), odd) == ""
    assert why_not(request(**{**order, "forced_host": None, "forced_node": "h1.example"}), odd) == ""
    assert why_not(request(**order, resources={"VCPU": 9}), odd) == "9 vCPUs wanted, 8 free"
    assert why_not(request(**order), state("h1", up=False)) == "its agent does not answer"
    assert why_not(request(**order, tried={"h1": "x"}), odd) == "it failed there: x"


def test_hosts_that_are_not_the_forced_one_are_not_looked_at() -> None:
    reasons: dict[str, str] = {}
    hosts = [state("h1"), state("h2", up=False)]
    assert [each.host.host for each in rank(request(forced_host="h1"), hosts, reasons)] == ["h1"]
    assert rank(request(forced_host="h1", forced_node="h2.example"), hosts, reasons) == []
    assert rank(request(forced_host="h3"), hosts, reasons) == []
    assert reasons == {}


def test_the_emptiest_host_comes_first() -> None:
    hosts = [state("h1", used={RAM: 2000}), state("h2", used={RAM: 100}), state("h3", used={RAM: 1000})]
    hosts.append(state("h4", inventories={**hosts[0].provider.inventories, RAM: Inventory(total=64)}))
    reasons: dict[str, str] = {}
    assert [each.host.host for each in rank(request(), hosts, reasons)] == ["h2", "h3", "h1"]
    assert reasons == {"h4": "512 MiB of memory wanted, 64 free"}


def test_the_reason_is_the_first_in_the_order_of_the_filters() -> None:
    assert filters.FILTERS[:3] == (filters.tried, filters.requested, filters.compute)
    wanted = request(requested_host="h2", availability_zone="west", resources={"VCPU": 99})
    assert why_not(wanted, state("h1", up=False)) == "the host 'h2' was asked for"
    assert why_not(request(resources={"VCPU": 99}), state(up=False)) == "its agent does not answer"


def flavor(**more: Any) -> Flavor:
    return Flavor(id=1, flavorid="1", name="f", vcpus=2, memory_mb=512, root_gb=3, **more)


@pytest.mark.capability("UT-7")
def test_what_a_flavor_books() -> None:
    assert flavor().resources() == {"VCPU": 2, "MEMORY_MB": 512, "DISK_GB": 3}
    assert flavor(ephemeral_gb=4, swap_mb=1024).resources()["DISK_GB"] == 8
    assert flavor(swap_mb=1025).resources()["DISK_GB"] == 5  # a started GiB is one
    assert "DISK_GB" not in Flavor(id=1, flavorid="1", name="f", vcpus=1, memory_mb=1, root_gb=0).resources()


def test_extra_specs_go_before_the_numbers_of_a_flavor() -> None:
    specs = {
        "resources1:VCPU": "1",
        "resources:VCPU": "4",
        "resources:MEMORY_MB": "0",
        "resources:CUSTOM_GOLD": "7",
        "resources_NET:CUSTOM_GOLD": "2",
        "resources:DISK_GB": "many",
        "resource:DISK_GB": "9",
    }
    booked = {"VCPU": 5, "DISK_GB": 3, "CUSTOM_GOLD": 9}
    assert flavor(extra_specs=specs).resources() == booked
    assert flavor(extra_specs=dict(reversed(specs.items()))).resources() == booked
