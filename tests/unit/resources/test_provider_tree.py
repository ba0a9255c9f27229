"""The provider tree, and what an operator's files add to it."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from kilonova.errors import Conflict, Failed, NotFound
from kilonova.model.host import Inventory, ProviderReport
from kilonova.resources.provider_config import COMPUTE_NODE, ProviderExtra
from kilonova.resources.provider_merge import ProviderExtras
from kilonova.resources.provider_tree import (
    SHARES,
    Provider,
    ProviderTree,
    from_reports,
    inventories,
    nested_uuid,
)

CPU = {"VCPU": {"total": 8, "reserved": 1}}


def tree() -> ProviderTree:
    """cn (numa0 (dev0), numa1), and another root."""
    made = ProviderTree()
    made.new_root("cn", "u-cn", generation=3)
    made.new_child("numa0", "u-cn", "u-n0")
    made.new_child("numa1", "cn", "u-n1")
    made.new_child("dev0", "numa0", "u-d0")
    made.new_root("shares", "u-s")
    return made


@pytest.mark.capability("PT-2")
def test_providers_are_found_by_uuid_and_name() -> None:
    made = tree()
    assert made.snapshot("dev0") == made.snapshot("u-d0")
    assert made.exists("dev0") and made.exists("u-d0") and not made.exists("dev1")
    with pytest.raises(NotFound, match="no resource provider 'dev1'"):
        made.snapshot("dev1")
    assert made.uuids("u-s") == ["u-s"]  # a second root


@pytest.mark.capability("PT-3")
def test_what_is_taken_is_refused() -> None:
    made = tree()
    with pytest.raises(Conflict, match="u-n0"):
        made.new_root("x", "u-n0")
    with pytest.raises(Conflict, match="u-n0"):
        made.new_child("x", "u-cn", "u-n0")
    with pytest.raises(Conflict, match="'numa0'"):
        made.new_child("numa0", "u-cn")
    with pytest.raises(NotFound, match="'nobody'"):
        made.new_child("x", "nobody")
    assert made.uuids() == tree().uuids()


@pytest.mark.capability("PT-3")
def test_a_child_gets_the_same_uuid_after_each_start() -> None:
    first, second = tree().new_child("gpu", "numa0"), tree().new_child("gpu", "u-cn")
    assert first == second == nested_uuid("u-cn", "gpu")
    assert uuid.UUID(first).version == 5
    assert tree().new_child("gpu", "shares") != first
    assert tree().new_child("gpu2", "cn") != first


@pytest.mark.capability("PT-4")
def test_removal_takes_all_below() -> None:
    made = tree()
    made.remove("numa0")
    assert made.uuids() == ["u-cn", "u-n1", "u-s"]
    assert not made.exists("dev0")
    made.new_child("dev0", "numa1", "u-d0")  # its name and uuid are free again
    assert made.uuids("numa1") == ["u-n1", "u-d0"]
    with pytest.raises(NotFound):
        made.remove("numa0")


@pytest.mark.capability("PT-5", "PT-13")
def test_parents_come_before_their_children() -> None:
    made = tree()
    assert made.uuids() == ["u-cn", "u-n0", "u-d0", "u-n1", "u-s"]
    assert made.uuids("numa0") == ["u-n0", "u-d0"]
    assert made.uuids("dev0", whole=True) == ["u-cn", "u-n0", "u-d0", "u-n1"]
    assert made.uuids("cn", whole=True) == made.uuids("cn") == made.uuids("dev0", whole=True)
    with pytest.raises(NotFound):
        made.uuids("x", whole=True)


def provider(name: str, parent: str | None = None, **more: object) -> Provider:
    return Provider(uuid=f"u-{name}", name=name, parent=parent, **more)  # type: ignore[arg-type]


@pytest.mark.capability("PT-6")
def test_population_in_any_order() -> None:
    made = ProviderTree()
    made.populate([provider("c", "u-b"), provider("b", "u-a"), provider("d", "u-a"), provider("a")])
    assert made.uuids() == ["u-a", "u-b", "u-c", "u-d"]
    made.populate([provider("e", "u-c")])  # its parent is here already
    assert made.uuids("b") == ["u-b", "u-c", "u-e"]


@pytest.mark.capability("PT-6")
def test_population_replaces_a_provider_with_all_below_it() -> None:
    made = tree()
    made.populate([Provider(uuid="u-n0", name="numa0", parent="u-cn", traits=frozenset({"T"}))])
    assert made.uuids("cn") == ["u-cn", "u-n1", "u-n0"]
    assert made.has_traits("numa0", ["T"]) and not made.exists("dev0")


@pytest.mark.capability("PT-6")
@pytest.mark.parametrize(
    ("providers", "error", "words"),
    [
        ([provider("x", "u-q"), provider("y", "u-p")], NotFound, "u-p, u-q"),
        ([provider("x", "u-y"), provider("y", "u-x")], Conflict, "above itself"),
        ([provider("x"), Provider(uuid="u", name="x")], Conflict, "'x' already"),
        ([provider("n0", "u-cn"), provider("x", "u-d0")], NotFound, "was replaced: u-d0"),
    ],
)
def test_population_that_makes_no_tree_changes_nothing(
    providers: list[Provider], error: type[Exception], words: str
) -> None:
    made = tree()
    with pytest.raises(error, match=words):
        made.populate(providers)
    assert made.uuids() == tree().uuids()
    made.populate([])
    assert made.uuids() == tree().uuids()


@given(st.lists(st.integers(0, 100), max_size=20), st.randoms())
def test_any_tree_in_any_order(parents: list[int], random: object) -> None:
    """Provider number n hangs on one before it, or is a root."""
    made = [
        provider(str(n), f"u-{parent % n}" if n and parent % 5 else None) for n, parent in enumerate(parents)
    ]
    shuffled = list(made)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    found = ProviderTree()
    found.populate(shuffled)
    order = found.uuids()
    assert sorted(order) == sorted(each.uuid for each in made)
    assert all(each.parent is None or order.index(each.parent) < order.index(each.uuid) for each in made)
    assert [found.snapshot(each.uuid) for each in made] == made


@pytest.mark.capability("PT-1", "PT-7")
def test_a_snapshot_has_everything_and_is_ones_own() -> None:
    made = tree()
    made.update_inventory("numa0", CPU, generation=5)
    made.update_traits("numa0", ["T"])
    made.update_aggregates("numa0", ["A"])
    made.update_resources("numa0", {"CUSTOM_X": ["one"]})
    expected = Provider(
        uuid="u-n0",
        name="numa0",
        generation=5,
        parent="u-cn",
        inventory={"VCPU": {"total": 8, "reserved": 1}},
        traits=frozenset({"T"}),
        aggregates=frozenset({"A"}),
        resources={"CUSTOM_X": frozenset({"one"})},
    )
    found = made.snapshot("numa0")
    assert found == expected
    found.inventory["VCPU"]["total"] = 9
    found.resources["CUSTOM_Y"] = frozenset()
    assert made.snapshot("numa0") == expected
    given = {"VCPU": {"total": 1}}
    made.update_inventory("numa1", given)
    given["VCPU"]["total"] = 2
    assert made.snapshot("numa1").inventory == {"VCPU": {"total": 1}}


@pytest.mark.capability("PT-8")
@pytest.mark.parametrize(
    ("new", "changed"),
    [
        (CPU, False),
        ({"VCPU": {"total": 8}}, False),  # placement's to choose
        ({"VCPU": {"reserved": 1}}, False),
        ({"VCPU": {"total": 9, "reserved": 1}}, True),
        ({"VCPU": {"total": 8, "reserved": 1, "step_size": 1}}, True),
        ({}, True),
        ({**CPU, "PCPU": {"total": 1}}, True),
        ({"PCPU": {"total": 8, "reserved": 1}}, True),
    ],
)
def test_what_a_change_of_inventory_is(new: dict[str, dict[str, int | float]], changed: bool) -> None:
    made = tree()
    made.update_inventory("cn", CPU)
    assert made.has_inventory_changed("cn", new) is changed
    assert made.update_inventory("cn", new) is changed
    assert made.snapshot("cn").inventory == (new if changed else CPU)


@pytest.mark.capability("PT-9")
def test_updates_say_whether_they_were_changes_and_keep_the_generation() -> None:
    made = tree()
    assert made.snapshot("cn").generation == 3
    for generation, update in enumerate(
        (
            lambda g: made.update_inventory("cn", CPU, g),
            lambda g: made.update_traits("cn", ["T"], g),
            lambda g: made.update_aggregates("cn", ["A"], g),
            lambda g: made.update_resources("cn", {"R": ["x"]}, g),
        )
    ):
        assert update(10 + generation) is True
        assert made.snapshot("cn").generation == 10 + generation
        assert update(None) is False
        assert made.snapshot("cn").generation == 10 + generation
        assert update(20 + generation) is False
        assert made.snapshot("cn").generation == 20 + generation
    assert made.update_resources("cn", {"R": ["x", "y"]})
    with pytest.raises(NotFound):
        made.update_inventory("x", {})


@pytest.mark.capability("PT-10")
def test_traits_and_aggregates() -> None:
    made = tree()
    for update, add, remove, has, changed in (
        (made.update_traits, made.add_traits, made.remove_traits, made.has_traits, made.have_traits_changed),
        (
            made.update_aggregates,
            made.add_aggregates,
            made.remove_aggregates,
            made.in_aggregates,
            made.have_aggregates_changed,
        ),
    ):
        assert update("cn", ["A", "B"])
        assert has("cn", ["A"]) and has("cn", ["A", "B"]) and has("cn", []) and not has("cn", ["A", "C"])
        assert add("cn", "C", "A") and not add("cn", "C")
        assert remove("cn", "B", "D") and not remove("cn", "B")
        assert not changed("cn", ["C", "A"]) and changed("cn", ["A"]) and changed("cn", ["A", "C", "D"])
        assert update("cn", ["D"]) and not has("cn", ["A"])


@pytest.mark.capability("PT-11", "PT-12")
def test_who_shares_and_who_has_anything() -> None:
    made = tree()
    assert not made.has_inventory("shares")
    made.update_inventory("shares", {"DISK_GB": {"total": 1}})
    made.update_inventory("cn", CPU)
    assert made.has_inventory("shares")
    assert not made.has_sharing_provider("DISK_GB")
    made.update_traits("shares", [SHARES])
    assert made.has_sharing_provider("DISK_GB")
    assert not made.has_sharing_provider("VCPU")


def test_a_drivers_report_as_a_tree() -> None:
    stock = Inventory(total=8, reserved=1, max_unit=4, allocation_ratio=2.0)
    reports = (
        ProviderReport(uuid="u-d", name="dev", parent="u-cn", aggregates=("A",)),
        ProviderReport(uuid="u-cn", name="cn", inventories={"VCPU": stock}, traits=("T",)),
    )
    made = from_reports(reports)
    assert made.uuids() == ["u-cn", "u-d"]
    assert made.snapshot("dev").aggregates == {"A"}
    assert inventories(made.snapshot("cn")) == {"VCPU": stock}
    made.update_inventory("dev", {"CUSTOM_X": {"total": 5}})
    assert inventories(made.snapshot("dev")) == {"CUSTOM_X": Inventory(total=5)}


# ---- what an operator adds ----


def node(**more: object) -> ProviderTree:
    made = tree()
    made.update_inventory("cn", CPU)
    made.update_traits("cn", ["COMPUTE_NODE", "CUSTOM_DRIVER"])
    return made


def extra(**more: object) -> ProviderExtra:
    fields = {"inventories": {"CUSTOM_X": {"total": 4}}, "traits": ("CUSTOM_T",), "source": "f.yaml", **more}
    return ProviderExtra(**fields)  # type: ignore[arg-type]


@pytest.mark.capability("RT-30")
@pytest.mark.parametrize("which", [{"name": "cn"}, {"uuid": "u-cn"}, {"uuid": COMPUTE_NODE}])
def test_additions_are_merged_after_the_driver(which: dict[str, str]) -> None:
    made = node()
    ProviderExtras([extra(**which)]).add_to(made)
    found = made.snapshot("cn")
    assert found.inventory == {**CPU, "CUSTOM_X": {"total": 4}}
    assert found.traits == {"COMPUTE_NODE", "CUSTOM_DRIVER", "CUSTOM_T"}
    for other in ("numa0", "numa1", "dev0", "shares"):
        assert not made.has_inventory(other)


@pytest.mark.capability("RT-30")
def test_the_compute_node_means_all_nodes_that_are_not_named() -> None:
    made = node()
    made.new_root("cn2", "u-cn2")
    made.new_root("cn3", "u-cn3")
    for each in ("cn2", "cn3", "numa0"):  # a child is no compute node
        made.add_traits(each, "COMPUTE_NODE")
    named = extra(name="cn2", inventories={}, traits=("CUSTOM_NAMED",))
    ProviderExtras([extra(uuid=COMPUTE_NODE), named]).add_to(made)
    assert [name for name in ("cn", "cn2", "cn3", "numa0") if made.has_traits(name, ["CUSTOM_T"])] == [
        "cn",
        "cn3",
    ]
    assert made.has_traits("cn2", ["CUSTOM_NAMED"])


@pytest.mark.capability("RT-30")
def test_one_provider_by_name_and_by_uuid_is_an_error() -> None:
    made = node()
    both = [extra(name="numa0"), extra(uuid="u-n0", source="g.yaml")]
    with pytest.raises(
        Failed, match=r"u-n0 is configured by name 'numa0' in f\.yaml and by uuid 'u-n0' in g\.yaml"
    ):
        ProviderExtras(both).add_to(made)


@pytest.mark.capability("RT-30")
def test_what_the_driver_has_is_not_the_operators_and_nothing_is_half_applied() -> None:
    made = node()
    made.update_inventory("cn", {**CPU, "CUSTOM_X": {"total": 1}})
    before = [made.snapshot(each) for each in made.uuids()]
    good, bad = extra(name="numa0"), extra(uuid=COMPUTE_NODE, traits=("CUSTOM_DRIVER", "CUSTOM_T"))
    with pytest.raises(Failed, match=r"f\.yaml adds CUSTOM_DRIVER, CUSTOM_X to the provider 'cn'"):
        ProviderExtras([good, bad]).add_to(made)
    assert [made.snapshot(each) for each in made.uuids()] == before


@pytest.mark.capability("RT-30")
def test_a_provider_that_is_not_there_is_told_of_once() -> None:
    extras = ProviderExtras([extra(name="gone"), extra(uuid="cn")])  # a name is no uuid
    with capture_logs() as logs:
        for _ in range(3):
            extras.add_to(node())
    assert [(each["log_level"], each["provider"]) for each in logs] == [
        ("warning", "name 'gone'"),
        ("warning", "uuid 'cn'"),
    ]
    made = node()
    made.new_child("gone", "cn")
    extras.add_to(made)
    assert made.has_traits("gone", ["CUSTOM_T"])
