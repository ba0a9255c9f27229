"""What is on a host already, and where: load, server groups, servers that hints name, queries."""

from __future__ import annotations

import pytest

from kilonova.model.host import Metric
from kilonova.scheduler.request import GroupState
from tests.unit.scheduler.states import World, request, with_filters


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
    world.aggregate("h2", **{key: "2"})
    world.aggregate("h1", "h2", **{key: "9"})
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
