"""The NUMA cells that flavors and images ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Invalid
from kilonova.model.numa import GuestTopology
from kilonova.resources.numa_request import processor_classes, read_page_size, wanted_topology
from tests.unit.resources.numa import flavor_with

Words = dict[str, str]


def cells(
    specs: Words, image: Words | None = None, vcpus: int = 4, memory: int = 1024
) -> list[tuple[tuple[int, ...], int]]:
    found = wanted_topology(flavor_with(specs, vcpus, memory), image or {})
    assert found is not None
    return [(cell.cpus, cell.memory_mib) for cell in found.cells]


@pytest.mark.parametrize(
    "specs", [{}, {"hw:cpu_policy": "shared"}, {"hw:cpu_cores": "2"}, {"resources:VCPU": "4"}]
)
def test_most_guests_have_none(specs: Words) -> None:
    assert wanted_topology(flavor_with(specs), {"hw_disk_bus": "virtio"}) is None


def test_even_cells() -> None:
    assert cells({"hw:numa_nodes": "2"}) == [((0, 1), 512), ((2, 3), 512)]
    assert cells({}, {"hw_numa_nodes": "4"}) == [((number,), 256) for number in range(4)]


def test_cells_by_hand() -> None:
    specs = {"hw:numa_nodes": "2", "hw:numa_cpus.0": "0,2-3", "hw:numa_mem.0": "1000"}
    specs |= {"hw:numa_cpus.1": "1", "hw:numa_mem.1": "24"}
    assert cells(specs) == [((0, 2, 3), 1000), ((1,), 24)]
    image = {key.replace(":", "_"): value for key, value in specs.items()}
    assert cells({}, image) == [((0, 2, 3), 1000), ((1,), 24)]


@pytest.mark.parametrize(
    "specs", [{"hw:cpu_policy": "dedicated"}, {"hw:mem_page_size": "large"}, {"resources:PCPU": "4"}]
)
def test_pinning_and_large_pages_imply_one_cell(specs: Words) -> None:
    assert cells(specs) == [((0, 1, 2, 3), 1024)]


def test_what_cells_carry() -> None:
    specs = {
        "hw:cpu_policy": "mixed",
        "hw:cpu_dedicated_mask": "0,3",
        "hw:cpu_thread_policy": "isolate",
        "hw:emulator_threads_policy": "isolate",
        "hw:numa_nodes": "2",
        "hw:mem_page_size": "1GB",
    }
    found = wanted_topology(flavor_with(specs), {})
    assert isinstance(found, GuestTopology) and found.emulator_threads == "isolate"
    first, second = found.cells
    assert (first.id, first.dedicated, first.shared) == (0, (0,), (1,))
    assert (second.id, second.dedicated, second.shared) == (1, (3,), (2,))
    assert {cell.page_size for cell in found.cells} == {"1048576"}
    assert {cell.thread_policy for cell in found.cells} == {"isolate"}
    assert found.cells[0].host_cell is None and found.cells[0].pinning == {}


def test_real_time_cpus_travel_with_the_cells() -> None:
    specs = {"hw:cpu_policy": "dedicated", "hw:cpu_realtime": "1", "hw:cpu_realtime_mask": "^0"}
    found = wanted_topology(flavor_with(specs), {})
    assert found is not None and found.realtime_mask == "1-3"


def test_classes_of_processors() -> None:
    assert processor_classes(flavor_with({}), {}) == {"VCPU": 4}
    assert processor_classes(flavor_with({"hw:cpu_policy": "dedicated"}), {}) == {"PCPU": 4}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("small", "small"),
        ("any", "any"),
        ("large", "large"),
        ("2048", "2048"),
        ("4", "4"),
        ("2MB", "2048"),
        ("1GB", "1048576"),
        ("1GiB", "1048576"),
        ("4kB", "4"),
        ("16Kb", "2"),
        ("65536B", "64"),
    ],
)
def test_page_sizes(text: str, size: str) -> None:
    assert read_page_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "huge", "2M", "-4", "1.5GB", "100B", "LARGE", "4KB4", "1025B"])
def test_page_sizes_that_are_none(text: str) -> None:
    with pytest.raises(Invalid, match="page size"):
        read_page_size(text)


@given(st.text(max_size=12))
def test_any_text_is_a_page_size_or_refused(text: str) -> None:
    try:
        found = read_page_size(text)
    except Invalid:
        return
    assert found in ("small", "large", "any") or int(found) > 0


@pytest.mark.parametrize(
    ("specs", "image", "size"),
    [
        ({"hw:mem_page_size": "any"}, {"hw_mem_page_size": "2MB"}, "2048"),
        ({"hw:mem_page_size": "large"}, {"hw_mem_page_size": "1GB"}, "1048576"),
        ({"hw:mem_page_size": "large"}, {}, "large"),
    ],
)
def test_the_image_may_choose_where_the_flavor_leaves_a_choice(specs: Words, image: Words, size: str) -> None:
    found = wanted_topology(flavor_with(specs), image)
    assert found is not None and found.cells[0].page_size == size


BY_HAND = {
    "hw:numa_nodes": "2",
    "hw:numa_cpus.0": "0-1",
    "hw:numa_mem.0": "512",
    "hw:numa_cpus.1": "2-3",
    "hw:numa_mem.1": "512",
}


def but(**changes: str | None) -> Words:
    """BY_HAND with changes; names without ``hw:numa_``, ``__`` for the dot."""
    result: Words = dict(BY_HAND)
    for name, value in changes.items():
        key = f"hw:numa_{name.replace('__', '.')}"
        if value is None:
            del result[key]
        else:
            result[key] = value
    return result


@pytest.mark.parametrize(
    ("specs", "image", "words"),
    [
        ({"hw:numa_nodes": "0"}, {}, "from 1 to"),
        ({"hw:numa_nodes": "two"}, {}, "from 1 to"),
        ({"hw:numa_nodes": "-1"}, {}, "from 1 to"),
        ({}, {"hw_numa_nodes": "1.5"}, "from 1 to"),
        ({"hw:numa_nodes": "2"}, {"hw_numa_nodes": "2"}, "not allowed"),
        ({"hw:numa_nodes": "2"}, {"hw_numa_cpus.0": "0"}, "not allowed"),
        ({"hw:numa_nodes": "3"}, {}, "cannot be shared evenly"),
        ({"hw:numa_cpus.0": "0"}, {}, "need numa_nodes"),
        (but(cpus__2="0"), {}, "no NUMA cell 2"),
        (but(cpus__1=None), {}, "needs both"),
        (but(mem__0=None), {}, "needs both"),
        (but(cpus__1="2-4"), {}, "names CPU 4"),
        (but(cpus__1="1-3"), {}, "in two NUMA cells"),
        (but(cpus__1="2"), {}, "3 are in no NUMA cell"),
        (but(cpus__1="^2"), {}, "names no CPU"),
        (but(cpus__1="x"), {}, "not valid"),
        (but(mem__1="500"), {}, "1012 MiB"),
        (but(mem__1="much"), {}, "number of MiB"),
        (but(mem__1="0"), {}, "number of MiB"),
        ({}, {"hw_mem_page_size": "large"}, "says nothing of it"),
        ({"hw:mem_page_size": "small"}, {"hw_mem_page_size": "large"}, "not allowed"),
        ({"hw:mem_page_size": "2048"}, {"hw_mem_page_size": "2048"}, "not allowed"),
        ({"hw:mem_page_size": "any"}, {"hw_mem_page_size": "tiny"}, "not valid"),
        ({"hw:locked_memory": "true"}, {}, "needs hw:mem_page_size"),
        ({}, {"hw_locked_memory": "true"}, "needs hw:mem_page_size"),
        (
            {"hw:locked_memory": "true", "hw:mem_page_size": "any"},
            {"hw_locked_memory": "false"},
            "contradict",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(specs: Words, image: Words, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        wanted_topology(flavor_with(specs), image)


_KEYS = st.sampled_from(
    (
        *("cpu_policy", "numa_nodes", "numa_cpus.0", "numa_mem.0", "mem_page_size", "cpu_thread_policy"),
        *("cpu_dedicated_mask", "cpu_realtime", "cpu_realtime_mask", "emulator_threads_policy"),
        "locked_memory",
    )
)
_VALUES = st.sampled_from(
    ["1", "2", "0-3", "^0", "dedicated", "mixed", "large", "isolate", "true", "512", "x"]
)


@given(st.dictionaries(_KEYS, _VALUES), st.dictionaries(_KEYS, _VALUES), st.integers(1, 8))
def test_whatever_is_said_is_understood_or_refused(flavors: Words, images: Words, vcpus: int) -> None:
    """Cells have all of the flavor's CPUs and memory, each once."""
    specs = {f"hw:{key}": value for key, value in flavors.items()}
    properties = {f"hw_{key}": value for key, value in images.items()}
    try:
        found = wanted_topology(flavor_with(specs, vcpus, 1024), properties)
    except Invalid:
        return
    if found is not None:
        assert sorted(cpu for cell in found.cells for cpu in cell.cpus) == list(range(vcpus))
        assert sum(cell.memory_mib for cell in found.cells) == 1024
