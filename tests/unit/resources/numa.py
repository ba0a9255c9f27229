"""Hosts, flavors and guests for the tests of resources."""

from __future__ import annotations

from typing import Any

from kilonova.model.flavor import Flavor
from kilonova.model.numa import GuestTopology, HostCell, HostTopology, Pages
from kilonova.resources.numa_request import wanted_topology

GIB = 1024  # MiB
KIB_IN_GIB = 1 << 20


def flavor(vcpus: int = 4, memory_mb: int = 1024, **specs: str) -> Flavor:
    """``hw__numa_nodes="2"`` stands for ``hw:numa_nodes``; use a dict for names with dots."""
    return flavor_with({key.replace("__", ":", 1): value for key, value in specs.items()}, vcpus, memory_mb)


def flavor_with(specs: dict[str, str], vcpus: int = 4, memory_mb: int = 1024) -> Flavor:
    return Flavor(
        id=1, flavorid="f", name="f", vcpus=vcpus, memory_mb=memory_mb, root_gb=1, extra_specs=specs
    )


def guest(vcpus: int = 4, memory_mb: int = 1024, **specs: str) -> GuestTopology:
    found = wanted_topology(flavor(vcpus, memory_mb, **specs), {})
    assert found is not None
    return found


def cell(
    number: int, cpus: int = 8, *, threads: int = 2, gib: int = 8, large: int = 1024, **more: Any
) -> HostCell:
    """A cell of which all CPUs are for pinning, with ``large`` pages of 2 MiB."""
    first = number * cpus
    numbers = tuple(range(first, first + cpus))
    values: dict[str, Any] = {
        "id": number,
        "shared": (),
        "dedicated": numbers,
        "memory_mib": gib * GIB,
        "siblings": tuple(numbers[at : at + threads] for at in range(0, cpus, threads))
        if threads > 1
        else (),
        "pages": (
            Pages(size_kib=4, total=(gib * KIB_IN_GIB - large * 2048) // 4),
            Pages(size_kib=2048, total=large),
        ),
        "socket": number // 2,
    }
    return HostCell(**{**values, **more})


def host(*cells: HostCell) -> HostTopology:
    return HostTopology(cells=cells or (cell(0), cell(1)))
