"""Which host CPUs pinned ones get."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.resources.cpu_pinning import Pins, pin

PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))


@pytest.mark.parametrize(
    ("free", "number", "policy", "expected"),
    [
        (range(8), 4, None, Pins((0, 1, 2, 3))),
        (range(8), 4, "prefer", Pins((0, 1, 2, 3))),
        ({0, 2, 4, 6, 7}, 2, "prefer", Pins((6, 7))),
        ({0, 2, 4, 6, 7}, 1, "prefer", Pins((0,))),  # a whole core is not broken for one
        ({0, 2, 4}, 2, "prefer", Pins((0, 2))),
        ({0, 2, 4, 5}, 3, "prefer", Pins((0, 2, 4))),
        (range(8), 3, "require", Pins((0, 1, 2))),
        ({1, 2, 3}, 2, "require", Pins((2, 3))),
        ({1, 2, 4, 6}, 2, "require", None),
        (range(8), 1, "require", Pins((0,))),
        (range(8), 3, "isolate", Pins((0, 2, 4), (1, 3, 5))),
        ({0, 2, 3, 4}, 1, "isolate", Pins((2,), (3,))),
        ({0, 2, 3, 4}, 2, "isolate", None),
        (range(8), 5, "isolate", None),
        (range(3), 4, None, None),
    ],
)
def test_pairs_of_threads(
    free: range | set[int], number: int, policy: str | None, expected: Pins | None
) -> None:
    assert pin(frozenset(free), PAIRS, number, policy) == expected


def test_without_hyper_threading() -> None:
    assert pin(frozenset({4, 1, 2}), (), 2, "prefer") == Pins((1, 2))
    assert pin(frozenset({4, 1, 2}), (), 2, "isolate") == Pins((1, 2))
    assert pin(frozenset({4, 1, 2}), (), 2, "require") is None


def test_four_threads_a_core() -> None:
    cores = ((0, 1, 2, 3), (4, 5, 6, 7))
    assert pin(frozenset(range(8)), cores, 4, "require") == Pins((0, 1, 2, 3))
    assert pin(frozenset({0, 1, 4, 5, 6}), cores, 3, "prefer") == Pins((4, 5, 6))
    assert pin(frozenset({0, 1, 4, 5}), cores, 3, "require") == Pins((0, 1, 4))


@given(
    st.frozensets(st.integers(0, 15)),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 16),
    st.sampled_from([None, "prefer", "require", "isolate"]),
)
def test_what_is_given_is_free_and_given_once(
    free: frozenset[int], threads: int, number: int, policy: str | None
) -> None:
    cores = tuple(tuple(range(at, at + threads)) for at in range(0, 16, threads))
    found = pin(free, cores, number, policy)
    if found is None:
        assert policy in ("require", "isolate") or number > len(free)
        return
    held = (*found.cpus, *found.idle)
    assert len(found.cpus) == number
    assert len(set(held)) == len(held) and free.issuperset(held)
    home = {cpu: core for core in cores for cpu in core}
    used = [home[cpu] for cpu in found.cpus]
    if policy == "isolate":
        assert len(set(used)) == number  # a core each
        assert set(found.idle) == {cpu for core in used for cpu in core} - set(found.cpus)
    else:
        assert not found.idle
    if policy == "require" and number > 1:
        alone = [core for core in set(used) if used.count(core) == 1]
        assert threads > 1 and len(alone) <= 1
