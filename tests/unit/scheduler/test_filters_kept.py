"""Hosts that are kept for some images, flavors and projects, by options and by their aggregates."""

from __future__ import annotations

import pytest

from tests.unit.scheduler.states import World, request, with_filters


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
