"""The options of nova.conf, and the filters that they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilonova.errors import Failed
from kilonova.scheduler.filters.registry import FIRST, LAST, filters_of, known
from kilonova.scheduler.options import default_options, options_of
from kilonova.scheduler.question import Filter
from kilonova.settings import Settings, read_options
from tests.unit.scheduler.states import World, request

NOVAS = [
    "AllHostsFilter",
    "AggregateImagePropertiesIsolation",
    "AggregateInstanceExtraSpecsFilter",
    "AggregateIoOpsFilter",
    "AggregateMultiTenancyIsolation",
    "AggregateNumInstancesFilter",
    "AggregateTypeAffinityFilter",
    "ComputeCapabilitiesFilter",
    "ComputeFilter",
    "DifferentHostFilter",
    "ImagePropertiesFilter",
    "IoOpsFilter",
    "IsolatedHostsFilter",
    "JsonFilter",
    "MetricsFilter",
    "NUMATopologyFilter",
    "NumInstancesFilter",
    "PciPassthroughFilter",
    "SameHostFilter",
    "ServerGroupAffinityFilter",
    "ServerGroupAntiAffinityFilter",
    "SimpleCIDRAffinityFilter",
    "AvailabilityZoneFilter",
    "RetryFilter",
]


def names(*enabled: str, **options: object) -> list[str]:
    found = filters_of(default_options(enabled_filters=enabled, **options))
    always = {each.name for each in (*FIRST, *LAST)}
    return [each.name for each in found if each.name not in always]


def test_all_of_novas_filters_can_be_enabled() -> None:
    for name in NOVAS:
        assert names(name) in ([name], [name] * 2, []), name
        assert names(name) or name in {each.name for each in (*FIRST, *LAST)}
        assert filters_of(default_options(enabled_filters=(f"nova.scheduler.filters.x.{name}",)))


def test_the_default_ones_are_novas() -> None:
    assert list(dict.fromkeys(names(*default_options().enabled_filters))) == [
        "ComputeFilter",
        "ComputeCapabilitiesFilter",
        "ImagePropertiesFilter",
        "ServerGroupAntiAffinityFilter",
        "ServerGroupAffinityFilter",
    ]


def test_filters_that_are_not_known_or_not_available() -> None:
    with pytest.raises(Failed, match="there is no 'LuckFilter' among the available filters"):
        names("LuckFilter")
    with pytest.raises(Failed, match="there is no 'JsonFilter'"):
        names("JsonFilter", available_filters=("nova.scheduler.filters.compute_filter.ComputeFilter",))
    with pytest.raises(Failed, match="there is no filter 'LuckFilter'"):
        names(available_filters=("nova.scheduler.filters.luck.LuckFilter",))
    assert names("RamFilter", "CoreFilter") == []  # gone from Nova, and from here
    some = ("nova.scheduler.filters.compute_filter.ComputeFilter",)
    assert names("ComputeFilter", available_filters=some) == ["ComputeFilter"]


ODD = Filter(
    "OddFilter",
    concerns=lambda question: True,
    passes=lambda question, among: among & (question.columns.instances % 2 == 1),
    why=lambda question, row: "it is even",
)
NO_FILTER = 7


def test_a_filter_of_ones_own() -> None:
    available = ("nova.scheduler.filters.all_filters", f"{__name__}.ODD")
    world = World(available_filters=available, enabled_filters=("ComputeFilter", "ODD"))
    world.add("h1", instances=1)
    world.add("h2", instances=2)
    assert world.explain(request()).reasons == {"h2": "it is even"}
    for wrong, why in (("NO_FILTER", "is no kilonova"), ("NOTHING", "cannot be loaded")):
        with pytest.raises(Failed, match=why):
            names(available_filters=(f"{__name__}.{wrong}",))
    with pytest.raises(Failed, match="cannot be loaded"):
        names(available_filters=("no.such.module.X",))


def options(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "nova.conf"
    path.write_text(text)
    return Settings(state_dir=tmp_path, options=read_options(path))


def test_options_are_read_from_a_file(tmp_path: Path) -> None:
    found = options_of(
        options(
            tmp_path,
            """
            [DEFAULT]
            default_availability_zone = south
            service_down_time = 7
            [scheduler]
            enable_isolated_aggregate_filtering = true
            max_placement_results = 5
            [filter_scheduler]
            enabled_filters = ComputeFilter, JsonFilter
            available_filters = nova.scheduler.filters.all_filters
            available_filters = a.B
            host_subset_size = 3
            isolated_hosts = h1,h2
            ram_weight_multiplier = -1.5
            image_props_weight_setting = os_distro=2, os_type = 0.5
            [metrics]
            weight_multiplier = 4
            weight_setting = cpu.idle=1.0,cpu.frequency=-1
            required = false
            """.replace("            ", ""),
        )
    )
    assert (found.default_zone, found.service_down_time) == ("south", 7)
    assert (found.enable_isolated_aggregate_filtering, found.max_placement_results) == (True, 5)
    assert found.enabled_filters == ("ComputeFilter", "JsonFilter")
    assert found.available_filters == ("nova.scheduler.filters.all_filters", "a.B")
    assert (found.host_subset_size, found.isolated_hosts) == (3, {"h1", "h2"})
    assert found.multipliers["ram_weight_multiplier"] == -1.5
    assert found.multipliers["metrics_weight_multiplier"] == 4.0
    assert found.image_props_weights == {"os_distro": 2.0, "os_type": 0.5}
    assert found.metrics_weights == {"cpu.idle": 1.0, "cpu.frequency": -1.0}
    assert found.metrics_required is False
    assert options_of(options(tmp_path, "")) == default_options()


@pytest.mark.parametrize("text", ["[metrics]\nweight_setting = a", "[metrics]\nweight_setting = a=b"])
def test_weights_that_are_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(Failed, match=r"\[metrics\]weight_setting"):
        options_of(options(tmp_path, text))


def test_names_are_unique_but_for_pairs() -> None:
    assert all(len(each) <= 2 for each in known().values())
