"""Which host is the best: each weigher alone, how they are added up, and multipliers of aggregates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.errors import Failed
from kilonova.model.host import Metric
from kilonova.scheduler.options import default_options
from kilonova.scheduler.weighers import WEIGHERS
from kilonova.scheduler.weighing import weighers_of
from tests.unit.scheduler.states import STOCK, World, request
from tests.unit.scheduler.test_filters_around import group

RAM = "MEMORY_MB"


def with_weigher(name: str, **options: Any) -> World:
    """A world in which one weigher decides alone."""
    return World(weight_classes=(f"nova.scheduler.weights.x.{name}",), **options)


def shares(world: World, wanted: Any = None) -> dict[str, float]:
    """Host -> its weight."""
    told = world.explain(wanted or request())
    assert [each.weight for each in told.ranked] == sorted(
        (each.weight for each in told.ranked), reverse=True
    )
    return {each.host: round(each.weight, 6) for each in told.ranked}


def test_weights_go_from_nothing_to_the_multiplier() -> None:
    world = with_weigher("RAMWeigher", multipliers={"ram_weight_multiplier": 3.0})
    for name, used in (("h1", 0), ("h2", 1000), ("h3", 2000)):
        world.add(name, used={RAM: used})
    assert shares(world) == {"h1": 3.0, "h2": 1.5, "h3": 0.0}
    assert world.ranked(request()) == ["h1", "h2", "h3"]


def test_only_hosts_that_will_do_are_compared() -> None:
    world = with_weigher("RAMWeigher")
    world.add("h1", used={RAM: 1000})
    world.add("h2", used={RAM: 3000})
    world.add("h3", disabled=True)
    assert shares(world) == {"h1": 1.0, "h2": 0.0}


def test_hosts_that_are_alike_weigh_nothing() -> None:
    world = World()
    world.add("h1")
    world.add("h2")
    assert shares(world) == {"h1": 0.0, "h2": 0.0}
    assert World().ranked(request()) == []


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("RAMWeigher", {}, {"used": {RAM: 1}}),
        ("CPUWeigher", {}, {"used": {"VCPU": 1}}),
        ("DiskWeigher", {}, {"used": {"DISK_GB": 1}}),
        ("IoOpsWeigher", {}, {"io_ops": 1}),
        ("PCIWeigher", {}, {"pci_free": 1}),
        ("BuildFailureWeigher", {}, {"failed_builds": 1}),
        ("HypervisorVersionWeigher", {}, {"hypervisor_version": 1}),
    ],
)
def test_each_weigher(name: str, better: dict[str, Any], worse: dict[str, Any]) -> None:
    world = with_weigher(name)
    world.add("h1", **worse)
    world.add("h2", **better)
    world.add("h3", **worse)
    assert world.ranked(request())[0] == "h2"
    (best, *others) = world.explain(request()).ranked
    assert all(best.weight > each.weight for each in others)
    assert list(best.weights) == [name]
    for other in WEIGHERS:
        if other.name != name:
            alone = with_weigher(other.name)
            alone.add("h1", **worse)
            alone.add("h2", **better)
            assert set(shares(alone).values()) == {0.0}, other.name


@pytest.mark.parametrize(("multiplier", "first"), [(1_000_000.0, "h2"), (-1.0, "h1")])
def test_the_own_cell_is_preferred_where_others_will_do(multiplier: float, first: str) -> None:
    world = with_weigher("CrossCellWeigher", multipliers={"cross_cell_move_weight_multiplier": multiplier})
    world.add("h1", cell_uuid="c2")
    world.add("h2")
    wanted = request(cells=frozenset({FIRST_CELL, "c2"}), own_cell=FIRST_CELL)
    assert world.ranked(wanted)[0] == first
    assert set(shares(world, request()).values()) == {0.0}  # which knows of no cell


def test_the_number_of_servers_counts_only_when_asked_to() -> None:
    for multiplier, first in ((0.0, "h1"), (1.0, "h2"), (-1.0, "h1")):
        world = with_weigher(
            "NumInstancesWeigher", multipliers={"num_instances_weight_multiplier": multiplier}
        )
        world.add("h1", instances=1)
        world.add("h2", instances=5)
        assert world.ranked(request())[0] == first


def test_ratios_count_for_cpus_and_not_for_memory() -> None:
    big = {**STOCK, RAM: STOCK[RAM].__class__(total=4000, reserved=0, allocation_ratio=9.0)}
    world = with_weigher("RAMWeigher")
    world.add("h1", inventories=big)
    world.add("h2", inventories={**STOCK, RAM: STOCK[RAM].__class__(total=5000, reserved=500)})
    assert world.ranked(request())[0] == "h2"
    cpus = {**STOCK, "VCPU": STOCK["VCPU"].__class__(total=2, allocation_ratio=16.0)}
    world = with_weigher("CPUWeigher")
    world.add("h1")
    world.add("h2", inventories=cpus)
    assert world.ranked(request())[0] == "h2"


def metric(name: str, value: float) -> Metric:
    return Metric(name=name, value=value, timestamp=1, source="test")


def test_metrics() -> None:
    world = with_weigher("MetricsWeigher", metrics_weights={"a": 1.0, "b": -2.0})
    world.add("h1", metrics=(metric("a", 10.0), metric("b", 1.0)))  # 8
    world.add("h2", metrics=(metric("a", 6.0), metric("b", -3.0)))  # 12
    world.add("h3", metrics=(metric("a", 1e6),))  # -10000, since one is missing
    assert world.ranked(request()) == ["h2", "h1", "h3"]
    raw = {each.host: each.weights["MetricsWeigher"].raw for each in world.explain(request()).ranked}
    assert raw == {"h1": 8.0, "h2": 12.0, "h3": -10000.0}
    unset = with_weigher("MetricsWeigher")
    unset.add("h1", metrics=(metric("a", 1.0),))
    assert unset.explain(request()).ranked[0].weights == {}


def test_soft_policies_of_server_groups() -> None:
    for policy, order in (("soft-affinity", ["h2", "h1", "h3"]), ("soft-anti-affinity", ["h3", "h1", "h2"])):
        world = World(weight_classes=("ServerGroupSoftAffinityWeigher", "ServerGroupSoftAntiAffinityWeigher"))
        for name in ("h1", "h2", "h3"):
            world.add(name)
        assert world.ranked(request(group=group(policy, h1=1, h2=4, gone=9))) == order
        assert world.ranked(request(group=group("affinity", h3=1))) == ["h3"]


def test_images_like_that_of_the_server() -> None:
    debian, arch = {"os_distro": "debian", "os_type": "linux"}, {"os_distro": "arch", "os_type": "linux"}
    multipliers = {"image_props_weight_multiplier": 1.0}
    for weights, first in (({}, "h1"), ({"os_type": 1.0}, "h2"), ({"os_distro": 5.0, "os_type": 1.0}, "h1")):
        world = with_weigher("ImagePropertiesWeigher", multipliers=multipliers, image_props_weights=weights)
        rows = {name: world.add(name) for name in ("h1", "h2")}
        counts: dict[tuple[str, str], Any] = {}
        for name, properties, count in (("h1", debian, 2), ("h2", arch, 3)):
            for one in properties.items():
                column = counts.setdefault(one, np.zeros(world.columns.room, np.int64))
                column[rows[name]] += count
        world.columns.images = counts
        assert world.ranked(request(image_properties=debian))[0] == first, weights


def test_multipliers_of_aggregates() -> None:
    world = with_weigher("RAMWeigher")
    for name in ("h1", "h2", "h3"):
        world.add(name, used={RAM: {"h1": 0, "h2": 500, "h3": 1000}[name]})
    assert world.ranked(request()) == ["h1", "h2", "h3"]
    world.aggregate("h1", ram_weight_multiplier="-2.0")
    assert shares(world) == {"h1": -2.0, "h2": 0.5, "h3": 0.0}
    world.aggregate("h1", "h2", ram_weight_multiplier="9")  # the lowest of several counts
    assert shares(world) == {"h1": -2.0, "h2": 4.5, "h3": 0.0}
    world.aggregate("h2", ram_weight_multiplier="a lot")
    assert shares(world) == {"h1": -2.0, "h2": 4.5, "h3": 0.0}
    off = with_weigher("RAMWeigher", multipliers={"ram_weight_multiplier": 0.0})
    off.add("h1")
    off.add("h2", used={RAM: 5})
    off.aggregate("h1", ram_weight_multiplier="1")  # on for these alone
    assert shares(off) == {"h1": 1.0, "h2": 0.0}


def test_failed_builds_outweigh_all_else() -> None:
    world = World()
    world.add("h1", failed_builds=1)
    world.add("h2", used={"VCPU": 6, RAM: 3000, "DISK_GB": 90}, io_ops=5)
    assert world.ranked(request())[0] == "h2"


def test_which_weighers_are_asked() -> None:
    every = [each.name for each in weighers_of(default_options())]
    assert every == [each.name for each in WEIGHERS] and len(every) == 13
    some = default_options(weight_classes=("nova.scheduler.weights.ram.RAMWeigher", "CPUWeigher"))
    assert [each.name for each in weighers_of(some)] == ["RAMWeigher", "CPUWeigher"]
    with pytest.raises(Failed, match="there is no 'LuckWeigher' among"):
        weighers_of(default_options(weight_classes=("LuckWeigher",)))
    for each in WEIGHERS:
        assert each.multiplier in default_options().multipliers, each.name
