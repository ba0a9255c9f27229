"""Guests' cells on hosts' cells."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from kilonova.model.host_resources import Limits
from kilonova.model.numa import GuestTopology, HostCell, HostTopology, Pages
from kilonova.resources import numa_fit
from kilonova.resources.numa_fit import NO_LIMITS, DoesNotFit, added, fit, removed, use_of
from tests.unit.resources.numa import GIB, cell, guest, host

PINNED = {"hw__cpu_policy": "dedicated"}
TWO = {"hw__numa_nodes": "2"}
BIG = host(cell(0, gib=64), cell(1, gib=64))


def shared(number: int, *, gib: int = 8) -> HostCell:
    return cell(number, gib=gib, shared=tuple(range(number * 8, number * 8 + 8)), dedicated=())


def places(found: GuestTopology) -> list[int | None]:
    return [each.host_cell for each in found.cells]


def refused(
    topology: HostTopology, wanted: GuestTopology, *there: GuestTopology, limits: Limits = NO_LIMITS
) -> str:
    with pytest.raises(DoesNotFit) as told:
        fit(topology, use_of(there), wanted, limits)
    return str(told.value)


@pytest.mark.capability("CL-6")
def test_a_pinned_guest_gets_cpus_of_its_own() -> None:
    first = fit(BIG, {}, guest(4, **PINNED))
    assert first.cells[0].pinning == {0: 0, 1: 1, 2: 2, 3: 3}
    second = fit(BIG, use_of([first]), guest(4, **PINNED))
    assert second.cells[0].pinning == {0: 4, 1: 5, 2: 6, 3: 7}
    third = fit(BIG, use_of([first, second]), guest(4, **PINNED))
    assert (third.cells[0].host_cell, third.cells[0].pinning) == (1, {0: 8, 1: 9, 2: 10, 3: 11})


def test_a_full_host_says_why_for_each_cell() -> None:
    full = [fit(host(cell(0)), {}, guest(8, **PINNED))]
    reason = refused(host(cell(0)), guest(2, **PINNED), *full)
    assert "2 dedicated CPUs wanted, free: none" in reason and "cell 0" in reason


def test_each_cell_of_a_guest_has_a_host_cell_of_its_own() -> None:
    assert places(fit(BIG, {}, guest(4, **PINNED, **TWO))) == [0, 1]
    assert "the guest has 4 NUMA cells, the host 2" in refused(BIG, guest(4, hw__numa_nodes="4"))


def test_cells_change_places_when_only_that_fits() -> None:
    """The first cell fits on both, the second on the first only."""
    topology = host(cell(0, gib=64), cell(1, cpus=8, gib=1, large=0))
    wanted = guest(4, 6 * GIB, hw__cpu_policy="dedicated", hw__numa_nodes="2")
    small, large = wanted.cells
    wanted = replace(wanted, cells=(replace(small, memory_mib=512), replace(large, memory_mib=4 * GIB)))
    assert places(fit(topology, {}, wanted)) == [1, 0]


def test_two_cells_that_fit_in_the_same_place_only() -> None:
    topology = host(cell(0, gib=64), cell(1, cpus=8, gib=1, large=0))
    wanted = guest(4, 8 * GIB, hw__numa_nodes="2", **PINNED)
    assert "need more of the host's cells" in refused(topology, wanted)


def test_isolated_emulator_threads_have_a_cpu_of_their_own() -> None:
    wanted = guest(4, hw__emulator_threads_policy="isolate", **PINNED)
    found = fit(BIG, {}, wanted)
    assert found.cells[0].emulator == (4,)
    assert use_of([found])[0].pinned == {0, 1, 2, 3, 4}
    assert "5 dedicated CPUs" in refused(host(cell(0, cpus=4)), wanted)


def test_the_emulator_is_with_the_first_cell_only() -> None:
    wanted = guest(4, hw__emulator_threads_policy="isolate", **PINNED, **TWO)
    found = fit(BIG, {}, wanted)
    assert [len(each.emulator) for each in found.cells] == [1, 0]


def test_idle_siblings_are_held_too() -> None:
    wanted = guest(2, hw__cpu_thread_policy="isolate", **PINNED)
    found = fit(host(cell(0, cpus=4)), {}, wanted)
    assert (found.cells[0].pinning, found.cells[0].reserved) == ({0: 0, 1: 2}, (1, 3))
    assert "suit the policy 'isolate'" in refused(host(cell(0, cpus=4)), wanted, found)
    assert "free: none" in refused(host(cell(0, cpus=4)), guest(1, **PINNED), found)


def test_a_sibling_that_no_guest_may_have_disturbs_nobody() -> None:
    topology = host(cell(0, cpus=4, dedicated=(0, 2)))  # 1 and 3 are the host's own
    assert fit(topology, {}, guest(2, hw__cpu_thread_policy="isolate", **PINNED)).cells[0].reserved == ()


def test_a_sibling_that_floating_cpus_use_disturbs() -> None:
    topology = host(cell(0, cpus=4, dedicated=(0, 2), shared=(1, 3)))
    assert "isolate" in refused(topology, guest(2, hw__cpu_thread_policy="isolate", **PINNED))


def test_floating_cpus_and_the_ratio() -> None:
    topology, wanted = host(shared(0, gib=64)), guest(6, hw__numa_nodes="1")
    first = fit(topology, {}, wanted, Limits(cpu_ratio=1.5))
    assert first.cells[0].pinning == {}
    assert fit(topology, use_of([first]), wanted, Limits(cpu_ratio=1.5)).cells[0].host_cell == 0
    assert "12 of 8 x 1.5" in refused(
        topology, guest(1, hw__numa_nodes="1"), first, first, limits=Limits(cpu_ratio=1.5)
    )
    assert "12 of 8 x 1.5" in refused(topology, wanted, first, first, limits=Limits(cpu_ratio=1.5))
    assert fit(topology, use_of([first] * 9), wanted).cells[0].host_cell == 0  # without a limit
    assert "9 shared CPUs wanted, 8 there" in refused(topology, guest(9, hw__numa_nodes="1"))


def test_a_mixed_guest_takes_both_kinds() -> None:
    topology = host(cell(0, shared=(0, 1, 2, 3), dedicated=(4, 5, 6, 7)))
    found = fit(topology, {}, guest(4, hw__cpu_policy="mixed", hw__cpu_dedicated_mask="2-3"))
    assert found.cells[0].pinning == {2: 4, 3: 5}
    assert use_of([found])[0] == numa_fit.CellUse(shared=2, pinned=frozenset({4, 5}), memory_mib=1024)


def test_memory_without_pages_may_be_over_committed_by_its_ratio_only() -> None:
    topology, wanted = host(shared(0, gib=4)), guest(1, 2 * GIB, hw__numa_nodes="1")  # 2 GiB are large pages
    one = fit(topology, {}, wanted, Limits(ram_ratio=1.5))
    assert "2048 of 2048 x 1.5" in refused(topology, wanted, one, limits=Limits(ram_ratio=1.5))
    assert fit(topology, use_of([one]), wanted, Limits(ram_ratio=2.0)).cells[0].page_size_kib is None
    assert "3072 MiB wanted, 2048 there" in refused(topology, guest(1, 3 * GIB, hw__numa_nodes="1"))


def paged(size: str, memory_mb: int = 1024) -> GuestTopology:
    return guest(1, memory_mb, hw__mem_page_size=size)


@pytest.mark.parametrize(
    ("size", "given_size"), [("small", 4), ("large", 2048), ("any", 2048), ("2MB", 2048), ("4", 4)]
)
def test_sizes_of_pages(size: str, given_size: int) -> None:
    topology = host(shared(0, gib=4))
    found = fit(topology, {}, paged(size))
    assert found.cells[0].page_size_kib == given_size
    assert use_of([found])[0].pages == {given_size: 1024 * 1024 // given_size}


def test_any_is_small_when_large_ones_are_used_up_or_do_not_divide() -> None:
    topology = host(shared(0, gib=4))
    large = fit(topology, {}, paged("large", 2048))
    assert fit(topology, use_of([large]), paged("any")).cells[0].page_size_kib == 4
    assert fit(topology, {}, paged("any", 1023)).cells[0].page_size_kib == 4
    assert "too few are free" in refused(topology, paged("large"), large)
    assert "no pages of the size '1048576'" in refused(topology, paged("1GB"))


def test_reserved_pages_are_not_given_away() -> None:
    pages = (Pages(size_kib=4, total=1 << 19), Pages(size_kib=2048, total=1024, reserved=513))
    topology = host(shared(0, gib=4))
    topology = host(replace(topology.cells[0], pages=pages))
    assert "too few are free" in refused(topology, paged("large"))
    assert fit(topology, {}, paged("large", 1022)).cells[0].page_size_kib == 2048


def test_small_pages_are_never_over_committed() -> None:
    topology = host(shared(0, gib=4))
    loose = fit(topology, {}, guest(1, 1536, hw__numa_nodes="1"))
    assert "too few are free" in refused(topology, paged("small"), loose)
    assert fit(topology, use_of([loose]), paged("small", 512)).cells[0].page_size_kib == 4


def test_packing_and_spreading() -> None:
    one = fit(BIG, {}, guest(2, **PINNED), order=(1, 0))
    wanted, use = guest(2, **PINNED), use_of([one])
    assert numa_fit.preferred(BIG, use, wanted, packing=True) == (1, 0)
    assert numa_fit.preferred(BIG, use, wanted, packing=False) == (0, 1)
    assert numa_fit.preferred(BIG, use, wanted, packing=False, first=frozenset({1})) == (1, 0)
    assert numa_fit.preferred(BIG, use, wanted, packing=True, last=frozenset({1})) == (0, 1)


def test_cells_must_be_acceptable_together() -> None:
    found = fit(BIG, {}, guest(2, **PINNED), acceptable=lambda cells: 1 in cells)
    assert places(found) == [1]
    with pytest.raises(DoesNotFit, match="suit the devices"):
        fit(BIG, {}, guest(2, **PINNED), acceptable=lambda cells: False)


def test_many_cells_are_not_tried_in_every_order() -> None:
    """Twelve cells have 479 million orders, and 4096 sets."""
    topology = host(*(cell(number, cpus=2, gib=64) for number in range(12)))
    wanted = guest(12, 1200, hw__numa_nodes="12", **PINNED)
    asked = []

    def acceptable(cells: frozenset[int]) -> bool:
        asked.append(cells)
        return False

    with pytest.raises(DoesNotFit):
        fit(topology, {}, wanted, acceptable=acceptable)
    assert asked == [frozenset(range(12))]


@pytest.mark.capability("CL-7")
def test_limits_are_a_record_a_mapping_or_nothing() -> None:
    assert numa_fit.read_limits(None) == Limits()
    assert numa_fit.read_limits({"cpu_ratio": 2.0}) == Limits(cpu_ratio=2.0)
    assert numa_fit.read_limits(Limits(ram_ratio=1.5)) == Limits(ram_ratio=1.5)


_specs = st.fixed_dictionaries(
    {},
    optional={
        "hw__cpu_policy": st.just("dedicated"),
        "hw__numa_nodes": st.sampled_from(["1", "2"]),
        "hw__mem_page_size": st.sampled_from(["small", "large", "any"]),
    },
)
_pinned_specs = st.fixed_dictionaries(
    {"hw__cpu_policy": st.just("dedicated")},
    optional={
        "hw__numa_nodes": st.sampled_from(["1", "2"]),
        "hw__mem_page_size": st.sampled_from(["small", "large", "any"]),
        "hw__cpu_thread_policy": st.sampled_from(["prefer", "isolate", "require"]),
        "hw__emulator_threads_policy": st.sampled_from(["share", "isolate"]),
    },
)
_guests = st.builds(
    lambda vcpus, memory, specs: guest(
        vcpus * 2, memory * 512, **(specs if "hw__numa_nodes" in specs else {**specs, "hw__numa_nodes": "1"})
    ),
    st.integers(1, 3),
    st.integers(1, 4),
    _specs | _pinned_specs,
)
_cells = st.builds(
    lambda threads, pinned, large: (threads, pinned, large),
    st.sampled_from([1, 2, 4]),
    st.integers(0, 8),
    st.sampled_from([0, 512, 1024]),
)


@settings(max_examples=150)
@given(
    st.lists(_cells, min_size=1, max_size=3),
    st.lists(st.tuples(_guests, st.booleans()), max_size=10),
    st.booleans(),
)
def test_nothing_is_given_twice_and_all_of_it_is_the_hosts(
    drawn: list[tuple[int, int, int]], arrivals: list[tuple[GuestTopology, bool]], packing: bool
) -> None:
    cells = []
    for number, (threads, pinned, large) in enumerate(drawn):
        numbers = tuple(range(number * 8, number * 8 + 8))
        more = {"dedicated": numbers[:pinned], "shared": numbers[pinned:]}
        cells.append(cell(number, threads=threads, gib=4, large=large, **more))
    topology = host(*cells)
    limits = Limits(cpu_ratio=2.0, ram_ratio=1.5)
    there: list[GuestTopology] = []
    use: numa_fit.Use = {}
    for wanted, leaves in arrivals:
        order = numa_fit.preferred(topology, use, wanted, packing=packing)
        try:
            found = fit(topology, use, wanted, limits, order=order)
        except DoesNotFit:
            continue
        assert removed(added(use, found), found) == use
        there.append(found)
        use = added(use, found)
        if leaves:
            use = removed(use, there.pop(0))
        assert use == use_of(there)
        _check(topology, there, limits)


def _check(topology: HostTopology, guests: list[GuestTopology], limits: Limits) -> None:
    """Counted anew, in another way than the fit does."""
    for place in topology.cells:
        here = [each for one in guests for each in one.cells if each.host_cell == place.id]
        held = [cpu for each in here for cpu in (*each.pinning.values(), *each.emulator, *each.reserved)]
        assert len(held) == len(set(held)) and set(held) <= set(place.dedicated)
        floating = sum(len(each.shared) for each in here)
        assert floating <= len(place.shared) * (limits.cpu_ratio or 0)
        used = {
            pages.size_kib: sum(
                each.memory_mib * 1024 for each in here if each.page_size_kib == pages.size_kib
            )
            for pages in place.pages
        }
        for pages in place.pages:
            assert used[pages.size_kib] <= pages.total * pages.size_kib
        loose = sum(each.memory_mib for each in here if each.page_size_kib is None)
        ordinary = place.memory_mib - place.pages[1].total * 2
        assert loose + used[4] // 1024 <= ordinary * (limits.ram_ratio or 0)
    for one in guests:
        assert len({each.host_cell for each in one.cells}) == len(one.cells)
        for each in one.cells:
            assert set(each.pinning) == set(each.dedicated)
