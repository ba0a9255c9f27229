"""Why a host is not taken: each filter alone, and in which order they speak."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.model.host import Inventory, Metric
from kilonova.scheduler.comparison import matches
from kilonova.scheduler.filters.image import version_matches
from kilonova.scheduler.request import GroupState, ServerRequest
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


# ---- hosts that are kept for some ----


@pytest.mark.parametrize(
    ("image", "restrict", "good"),
    [
        ("gold", True, ["h1"]),
        ("iron", True, ["h2"]),
        (None, True, ["h2"]),
        ("gold", False, ["h1"]),
        ("iron", False, ["h1", "h2"]),
    ],
)
def test_isolated_hosts(image: str | None, restrict: bool, good: list[str]) -> None:
    world = with_filters(
        "IsolatedHostsFilter",
        isolated_hosts=frozenset({"h1", "gone"}),
        isolated_images=frozenset({"gold"}),
        restrict_isolated_hosts_to_isolated_images=restrict,
    )
    world.add("h1")
    world.add("h2")
    told = world.explain(request(image_id=image))
    assert sorted(each.host for each in told.ranked) == good
    assert all("isolated" in reason for reason in told.reasons.values())


def test_flavors_and_the_metadata_of_aggregates() -> None:
    world = with_filters("AggregateInstanceExtraSpecsFilter")
    for name in ("h1", "h2", "h3"):
        world.add(name)
    world.aggregate("h1", ssd="true", size="4")
    world.aggregate("h1", "h2", size="8, 16")

    def good(**specs: str) -> list[str]:
        return sorted(world.ranked(request(extra_specs=specs)))

    assert good(ssd="true") == ["h1"]
    assert good(**{"aggregate_instance_extra_specs:ssd": "true"}) == ["h1"]
    assert good(size="16") == ["h1", "h2"]
    assert good(size="== 4") == ["h1"]
    assert good(size="<or> 4 <or> 8") == ["h1", "h2"]
    assert good(ssd="true", size="16") == ["h1"]  # from two aggregates of one host
    assert good(**{"other:ssd": "true"}) == ["h1", "h2", "h3"]
    reasons = world.explain(request(extra_specs={"size": "4"})).reasons
    assert reasons == {
        "h2": "its aggregates have '8', '16' for size, the flavor asks for '4'",
        "h3": "its aggregates have nothing for size, the flavor asks for '4'",
    }


def test_images_and_the_metadata_of_aggregates() -> None:
    world = with_filters("AggregateImagePropertiesIsolation")
    for name in ("h1", "h2"):
        world.add(name)
    world.aggregate("h1", os_distro="debian,ubuntu")
    world.aggregate("h1", os_distro="arch")
    assert world.why_not(request(image_properties={"os_distro": "ubuntu"})) == ""
    assert world.why_not(request(image_properties={"os_distro": "arch"})) == ""
    assert world.why_not(request(image_properties={"os_type": "bsd"})) == ""
    told = world.explain(request(image_properties={"os_distro": "bsd"}))
    assert told.reasons == {
        "h1": "its aggregates are for images with os_distro debian, ubuntu, arch, not bsd"
    }


def test_images_and_only_the_keys_of_a_namespace() -> None:
    world = with_filters(
        "AggregateImagePropertiesIsolation",
        aggregate_image_properties_isolation_namespace="os",
        aggregate_image_properties_isolation_separator="_",
    )
    world.add()
    world.aggregate("h1", os_distro="debian", hw_arch="x86")
    assert "os_distro" in world.why_not(request(image_properties={"os_distro": "bsd"}))
    assert world.why_not(request(image_properties={"hw_arch": "arm"})) == ""


def test_aggregates_of_projects() -> None:
    world = with_filters("AggregateMultiTenancyIsolation")
    for name in ("h1", "h2", "h3"):
        world.add(name)
    world.aggregate("h1", filter_tenant_id="p1, p2")
    world.aggregate("h1", "h2", filter_tenant_id_7="p3")
    for project, good in (("p1", ["h1", "h3"]), ("p3", ["h1", "h2", "h3"]), ("p4", ["h3"])):
        assert sorted(world.ranked(request(project_id=project))) == good
    assert world.why_not(request(project_id="p4")) == "its aggregates are for other projects"


def test_aggregates_of_flavors() -> None:
    world = with_filters("AggregateTypeAffinityFilter")
    for name in ("h1", "h2"):
        world.add(name)
    world.aggregate("h1", instance_type="m1.tiny, m1.small")
    assert world.why_not(request(flavor="m1.small")) == ""
    told = world.explain(request(flavor="m1.huge"))
    assert told.reasons == {"h1": "its aggregates are for the flavors m1.tiny, m1.small"}


def test_aggregates_that_are_kept_for_traits() -> None:
    world = World(enable_isolated_aggregate_filtering=True)
    world.add("h1", traits=frozenset({"CUSTOM_LICENSED", "CUSTOM_MORE"}))
    world.add("h2")
    world.aggregate("h1", name="win", **{"trait:CUSTOM_LICENSED": "required", "trait:CUSTOM_X": "maybe"})
    assert world.ranked(request()) == ["h2"]
    assert world.why_not(request()) == "its aggregate win is for servers that require CUSTOM_LICENSED"
    assert world.ranked(request(required=["CUSTOM_LICENSED"])) == ["h1"]
    assert world.ranked(request(required=["CUSTOM_MORE"])) == []
    other = World()
    other.add("h1")
    other.aggregate("h1", **{"trait:CUSTOM_LICENSED": "required"})
    assert other.ranked(request()) == ["h1"]  # only where it is switched on


@pytest.mark.parametrize(("required", "others"), [(False, ["h1", "h2"]), (True, [])])
def test_projects_that_are_limited_to_aggregates(required: bool, others: list[str]) -> None:
    world = World(
        limit_tenants_to_placement_aggregate=True, placement_aggregate_required_for_tenants=required
    )
    world.add("h1")
    world.add("h2")
    world.aggregate("h1", filter_tenant_id3="p1")
    assert world.ranked(request(project_id="p1")) == ["h1"]
    assert sorted(world.ranked(request(project_id="p2"))) == others
    assert world.why_not(request(project_id="p1"), "h2") == "it is in no aggregate of the project p1"


# ---- load ----


def test_hosts_with_too_many_servers_or_operations() -> None:
    world = with_filters("NumInstancesFilter", "IoOpsFilter", max_instances_per_host=3, max_io_ops_per_host=2)
    world.add("h1", instances=3)
    world.add("h2", instances=2, io_ops=2)
    world.add("h3", instances=2, io_ops=1)
    assert world.explain(request()).reasons == {
        "h1": "it has 3 servers, 3 are the most it may have",
        "h2": "it has 2 operations that keep its disks busy, 2 are the most it may have",
    }
    blind = with_filters("NumInstancesFilter", max_instances_per_host=3, track_instance_changes=False)
    blind.add("h1", instances=9)
    assert blind.ranked(request()) == ["h1"]


@pytest.mark.parametrize(
    ("name", "key", "column"),
    [
        ("AggregateNumInstancesFilter", "max_instances_per_host", "instances"),
        ("AggregateIoOpsFilter", "max_io_ops_per_host", "io_ops"),
    ],
)
def test_limits_of_aggregates(name: str, key: str, column: str) -> None:
    world = with_filters(name, **{key: 4})
    for host in ("h1", "h2", "h3"):
        world.add(host, **{column: 4})
    world.aggregate("h1", "h2", **{key: "9"})
    world.aggregate("h2", **{key: "2"})
    world.aggregate("h1", **{key: "many"})
    assert world.ranked(request()) == ["h1"]
    assert world.explain(request()).reasons["h2"].endswith("2 are the most it may have")
    assert world.explain(request()).reasons["h3"].endswith("4 are the most it may have")


def metric(name: str, value: float) -> Metric:
    return Metric(name=name, value=value, timestamp=1, source="test")


def test_hosts_whose_monitors_do_not_tell() -> None:
    world = with_filters("MetricsFilter", metrics_weights={"cpu.idle": 1.0, "cpu.frequency": -1.0})
    world.add("h1", metrics=(metric("cpu.idle", 0.0), metric("cpu.frequency", 3.0)))
    world.add("h2", metrics=(metric("cpu.idle", 5.0),))
    world.add("h3")
    assert world.explain(request()).reasons == {
        "h2": "its monitors do not tell cpu.frequency",
        "h3": "its monitors do not tell cpu.idle, cpu.frequency",
    }
    world.add("h1", metrics=())  # and what was told once does not stay for ever
    assert world.ranked(request()) == []


# ---- neighbours ----


def group(policy: str, *, most: int = 1, **members: int) -> GroupState:
    hosts = {f"node-{name}": count for name, count in members.items()}
    return GroupState(uuid="g", policy=policy, most=most, hosts=hosts)


def three(*names: str) -> World:
    world = with_filters(*names)
    for name in ("h1", "h2", "h3"):
        world.add(name)
    return world


def test_server_groups() -> None:
    world = three("ServerGroupAntiAffinityFilter", "ServerGroupAffinityFilter")

    def good(state: GroupState) -> list[str]:
        return sorted(world.ranked(request(group=state)))

    everywhere = ["h1", "h2", "h3"]
    assert good(group("anti-affinity", h1=1, h9=1)) == ["h2", "h3"]
    assert good(group("anti-affinity", most=2, h1=1, h2=2)) == ["h1", "h3"]
    assert good(group("anti-affinity")) == everywhere
    assert good(group("affinity", h2=3)) == ["h2"]
    assert good(group("affinity")) == everywhere
    assert good(group("soft-affinity", h2=1)) == everywhere
    assert good(group("soft-anti-affinity", h2=1)) == everywhere
    why = world.why_not(request(group=group("anti-affinity", h1=1)))
    assert why == "it has 1 of the servers of the group g, 1 may be on one host"
    assert (
        world.why_not(request(group=group("affinity", h2=1)))
        == "the other servers of its group are not there"
    )
    relaxed = three("AllHostsFilter")
    assert len(relaxed.ranked(request(group=group("affinity", h2=3)))) == 3


def test_servers_that_hints_name() -> None:
    world = three("DifferentHostFilter", "SameHostFilter")
    where = {"s1": "h1", "s2": "h2", "s9": "gone"}

    def good(**hints: object) -> list[str]:
        return sorted(world.ranked(request(hints=hints, hosts_of=where)))

    assert good(different_host="s1") == ["h2", "h3"]
    assert good(different_host=["s1", "s2", "s9", "unknown"]) == ["h3"]
    assert good(same_host=["s1", "s2"]) == ["h1", "h2"]
    assert good(same_host="unknown") == []
    assert good(same_host=["s1", "s2"], different_host=["s1"]) == ["h2"]
    assert good(different_host=[]) == ["h1", "h2", "h3"]
    why = world.why_not(request(hints={"different_host": ["s1", "s2"]}, hosts_of=where))
    assert why == "the hint 'different_host' keeps it apart from s1"
    why = world.why_not(request(hints={"same_host": "s2"}, hosts_of=where))
    assert why == "none of the servers of the hint 'same_host' is there"


def test_hosts_near_an_address() -> None:
    world = with_filters("SimpleCIDRAffinityFilter")
    for name, address in (("h1", "192.0.2.1"), ("h2", "192.0.3.1"), ("h3", "no address"), ("h4", "fe80::1")):
        world.add(name, host_ip=address)

    def good(**hints: object) -> list[str]:
        return sorted(world.ranked(request(hints=hints)))

    assert good(build_near_host_ip="192.0.2.77") == ["h1"]
    assert good(build_near_host_ip="192.0.2.77", cidr="/16") == ["h1", "h2"]
    assert good(build_near_host_ip="fe80::9", cidr="/64") == ["h4"]
    assert good(build_near_host_ip="192.0.2.77", cidr="/99") == []
    assert good(cidr="/24") == ["h1", "h2", "h3", "h4"]
    why = world.why_not(request(hints={"build_near_host_ip": "192.0.3.7"}))
    assert why == "its address 192.0.2.1 is not near 192.0.3.7"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('["=", "$host", "h1"]', True),
        (["=", "$host", "h1"], True),
        (['["=", "$host", "h1"]'], True),
        ('["and", [">=", "$free_ram_mb", 3584], ["<", "$num_instances", 3, 4]]', True),
        ('["<", "$num_instances", 3, 2]', False),
        ('["in", "$host", "h0", "h1"]', True),
        ('["in", "$host", "h0"]', False),
        ('["not", ["=", "$host", "h1"]]', False),
        ('["or", ["=", "$host", "h2"], ["=", "$cpu_info.arch", "x86_64"]]', True),
        ('[">", "$free_disk_mb", 102399]', True),
        ('["<=", "$host", 7]', False),  # what cannot be compared does not hold
        ('["=", "$nothing", 7]', False),
        ('["=", "$host"]', False),
        ('["like", "$host", "h1"]', False),
        ("[]", False),
        ("{", False),
        ("[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]", False),
    ],
)
def test_queries(query: object, expected: bool) -> None:
    world = with_filters("JsonFilter")
    world.add(instances=2)
    assert world.why_not(request()) == ""
    told = world.why_not(request(hints={"query": query}))
    assert told == ("" if expected else "the hint 'query' does not hold there")
