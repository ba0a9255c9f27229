"""NUMA cells of hosts: read, split between floating and pinned guest CPUs, and checked."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Failed
from kilonova.model.numa import HostCell, HostTopology, Pages
from kilonova.virt.libvirt.host_topology import Cell, CpuSets, NetworkCells, host_topology, read_cells
from kilonova.virt.libvirt.options import reserved_pages
from tests.unit.virt import cells as machines

EIGHT = frozenset(range(8))


def cells(text: str) -> list[Cell]:
    return read_cells(ET.fromstring(machines.capabilities(text)))


def topology(
    text: str = machines.SERVER,
    online: frozenset[int] = EIGHT,
    shared: set[int] | None = None,
    dedicated: set[int] | None = None,
    reserved: dict[tuple[int, int], int] | None = None,
    networks: NetworkCells | None = None,
) -> HostTopology:
    sets = CpuSets(
        shared=None if shared is None else frozenset(shared),
        dedicated=None if dedicated is None else frozenset(dedicated),
    )
    found = host_topology(cells(text), online, sets, reserved or {}, networks or NetworkCells())
    assert found is not None
    return found


def test_a_server_with_two_sockets() -> None:
    assert topology(shared={0, 4}, dedicated={1, 5, 2, 6}, reserved={(0, 2048): 24}) == HostTopology(
        cells=(
            HostCell(
                id=0,
                shared=(0, 4),
                dedicated=(1, 5),
                memory_mib=128000,
                siblings=((0, 4), (1, 5)),
                pages=(
                    Pages(size_kib=4, total=30670848),
                    Pages(size_kib=2048, total=1024, reserved=24),
                    Pages(size_kib=1048576, total=6),
                ),
                socket=0,
                distances=(10, 21),
            ),
            HostCell(
                id=1,
                shared=(),
                dedicated=(2, 6),
                memory_mib=129024,
                siblings=((2, 6),),  # the core of 3 and 7 is not for guests
                pages=(
                    Pages(size_kib=4, total=33030144),
                    Pages(size_kib=2048, total=0),
                    Pages(size_kib=1048576, total=0),
                ),
                socket=1,
                distances=(21, 10),
            ),
        )
    )


def test_threads_that_are_off_and_cells_without_cpus() -> None:
    first, second = topology(machines.POWER, online=frozenset({0, 8})).cells
    assert (first.id, first.shared, first.siblings, first.socket) == (0, (0, 8), (), 0)
    assert (second.id, second.shared, second.memory_mib, second.socket) == (8, (), 16384, None)
    assert (first.distances, second.distances) == ((10, 40), (40, 10))
    assert [page.size_kib for page in first.pages] == [64, 16384]


def test_a_machine_that_says_little() -> None:
    (cell,) = topology(machines.PLAIN, online=frozenset({0, 1})).cells
    assert cell == HostCell(id=0, shared=(0, 1), dedicated=(), memory_mib=1024)
    assert host_topology([], EIGHT, CpuSets(), {}, NetworkCells()) is None
    assert read_cells(ET.fromstring("<capabilities><host/></capabilities>")) == []


@pytest.mark.parametrize(
    ("shared", "dedicated", "expected"),
    [
        (None, None, ({0, 1, 2, 3}, set())),  # Nova's rule: nobody is pinned where nothing is set aside
        ({1}, None, ({1}, set())),
        (None, {2, 3}, (set(), {2, 3})),
        ({0, 1}, {2}, ({0, 1}, {2})),
    ],
)
def test_how_cpus_are_split(
    shared: set[int] | None, dedicated: set[int] | None, expected: tuple[set[int], set[int]]
) -> None:
    (cell,) = topology(machines.LAPTOP, frozenset(range(4)), shared, dedicated).cells
    assert (set(cell.shared), set(cell.dedicated)) == expected


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"shared": {0, 1}, "dedicated": {1, 2}}, r"both have the CPUs 1: a CPU is for one"),
        ({"shared": {0, 9, 10}}, r"cpu_shared_set names CPUs that are not online on this host: 9-10"),
        ({"dedicated": {9}}, r"cpu_dedicated_set names CPUs that are not online"),
        ({"dedicated": {7}, "online": EIGHT - {7}}, r"not online on this host: 7; it has 0-6"),
        ({"reserved": {(2, 2048): 1}}, r"pages of 2048 KiB in the cell 2, which this host does not have"),
        (
            {"reserved": {(0, 1024): 1}},
            r"of 1024 KiB in the cell 0, .* in cell 0 4, 2048, 1048576; in cell 1",
        ),
        (
            {"reserved": {(0, 2048): 1025}},
            r"reserves 1025 pages of 2048 KiB in the NUMA cell 0, which has 1024",
        ),
        (
            {"networks": NetworkCells(physical={"foo": frozenset({0, 5})})},
            r"\[neutron_physnet_foo\]numa_nodes names the NUMA cells 5, and this host has 0-1",
        ),
        ({"networks": NetworkCells(tunnels=frozenset({7}))}, r"\[neutron_tunnel\]numa_nodes"),
    ],
)
def test_options_that_do_not_fit_the_host(more: dict[str, Any], words: str) -> None:
    with pytest.raises(Failed, match=words):
        topology(**more)


def test_networks_are_near_cells() -> None:
    networks = NetworkCells(physical={"b": frozenset({0}), "a": frozenset({0, 1})}, tunnels=frozenset({1}))
    first, second = topology(networks=networks).cells
    assert (first.physical_networks, first.tunnels) == (("a", "b"), False)
    assert (second.physical_networks, second.tunnels) == (("a",), True)


@given(
    online=st.frozensets(st.integers(0, 7)),
    shared=st.none() | st.frozensets(st.integers(0, 7), min_size=1),
    dedicated=st.none() | st.frozensets(st.integers(0, 7), min_size=1),
)
def test_no_cpu_is_for_both_and_none_that_is_off(
    online: frozenset[int], shared: frozenset[int] | None, dedicated: frozenset[int] | None
) -> None:
    sets = CpuSets(shared=shared, dedicated=dedicated)
    try:
        found = host_topology(cells(machines.SERVER), online, sets, {}, NetworkCells())
    except Failed:
        assert ((shared or frozenset()) | (dedicated or frozenset())) - online or (
            (shared or frozenset()) & (dedicated or frozenset())
        )
        return
    assert found is not None
    floating = {cpu for cell in found.cells for cpu in cell.shared}
    pinned = {cpu for cell in found.cells for cpu in cell.dedicated}
    assert not floating & pinned and floating | pinned <= online
    assert pinned == (dedicated or set())
    assert all(set(core) <= floating | pinned for cell in found.cells for core in cell.siblings)


@pytest.mark.parametrize(
    ("size", "kib"),
    [("2048", 2048), ("2MB", 2048), ("2M", 2048), ("1GB", 1 << 20), ("1GiB", 1 << 20), ("64KB", 64)],
)
def test_reserved_pages(size: str, kib: int) -> None:
    assert reserved_pages([{"node": "1", "size": size, "count": "64"}]) == {(1, kib): 64}


@pytest.mark.parametrize(
    "entry",
    [
        {"node": "0", "size": "2048"},
        {"node": "0", "size": "2048", "count": "1", "more": "1"},
        {"node": "x", "size": "2048", "count": "1"},
        {"node": "0", "size": "2048", "count": "-1"},
        {"node": "0", "size": "2.5", "count": "1"},
        {"node": "0", "size": "2PB", "count": "1"},
        "0",
    ],
)
def test_reserved_pages_that_are_none(entry: object) -> None:
    with pytest.raises(Failed, match=r"\[DEFAULT\]reserved_huge_pages = "):
        reserved_pages([entry])


def test_pages_that_are_reserved_twice() -> None:
    with pytest.raises(Failed, match="reserved twice"):
        reserved_pages([{"node": "0", "size": size, "count": "1"} for size in ("2048", "2MB")])
