"""Sockets, cores and threads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Failed
from kilonova.virt.libvirt.topology import PARTS, Topology, choose_topology


def chosen(vcpus: int, wanted: str = "", most: str = "") -> tuple[int, int, int]:
    made = choose_topology(vcpus, numbers(wanted), numbers(most))
    return made.sockets, made.cores, made.threads


def numbers(text: str) -> dict[str, int | None]:
    """``1,-,2``: sockets, cores, threads."""
    if not text:
        return {}
    return {
        part: None if word == "-" else int(word) for part, word in zip(PARTS, text.split(","), strict=True)
    }


@pytest.mark.parametrize(
    ("vcpus", "wanted", "most", "expected"),
    [
        (4, "", "", (4, 1, 1)),  # sockets first
        (4, "1,-,-", "", (1, 4, 1)),
        (4, "-,-,2", "", (2, 1, 2)),
        (4, "2,2,-", "", (2, 2, 1)),
        (4, "1,2,2", "", (1, 2, 2)),
        (6, "4,-,-", "", (6, 1, 1)),  # cannot be: as near as possible, as Nova does
        (8, "", "2,-,-", (2, 4, 1)),
        (8, "", "2,2,-", (2, 2, 2)),
        (8, "8,-,-", "1,-,-", (1, 8, 1)),  # limits are stronger than wishes
        (1, "", "", (1, 1, 1)),
    ],
)
def test_choice(vcpus: int, wanted: str, most: str, expected: tuple[int, int, int]) -> None:
    assert chosen(vcpus, wanted, most) == expected


def test_limits_that_leave_nothing() -> None:
    with pytest.raises(Failed, match=r"8 processors do not fit .* sockets 1, cores 2, threads 2"):
        chosen(8, "", "1,2,2")


@given(st.integers(1, 64), *[st.one_of(st.none(), st.integers(1, 64))] * 3)
def test_there_are_always_as_many_as_the_flavor_has(
    vcpus: int, sockets: int | None, cores: int | None, threads: int | None
) -> None:
    wanted = {"sockets": sockets, "cores": cores, "threads": threads}
    made = choose_topology(vcpus, wanted, {})
    assert made.sockets * made.cores * made.threads == vcpus
    if sockets and cores and threads and sockets * cores * threads == vcpus:
        assert made == Topology(sockets=sockets, cores=cores, threads=threads)
