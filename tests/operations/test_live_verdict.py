"""Where a guest goes on, told of what two hypervisors say: the whole table, and what may never follow."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.operations.live_verdict import FENCED, Verdict, decide
from kilonova.rpc.moves import Presence

PRESENCES = tuple(value for name, value in vars(Presence).items() if name.isupper())
SAID = (*PRESENCES, None)
A, O, R, P = Presence.ABSENT, Presence.OFF, Presence.RUNNING, Presence.PAUSED  # noqa: E741
I, V, C, L, H = (  # noqa: E741
    Presence.INCOMING,
    Presence.LEAVING,
    Presence.POSTCOPY,
    Presence.LEFT,
    Presence.HELD,
)

# (source, destination) -> what it means; every other pair is UNKNOWN
TABLE: dict[tuple[str | None, str | None], Verdict] = {
    **{(L, there): Verdict.PASSED for there in (A, O, R, P, I, V, C, None)},
    **{(source, there): Verdict.PASSED for source in (A, O, V, C, H, None) for there in (R, P)},
    **{(source, O): Verdict.PASSED for source in (A, O, H, None)},
    **{(source, there): Verdict.STAYED for source in (R, P) for there in (A, I, None)},
    (H, A): Verdict.STAYED,
    (A, A): Verdict.DIED,
    (O, A): Verdict.DIED,
}


def test_there_is_no_other_presence() -> None:
    assert set(PRESENCES) == {A, O, R, P, I, V, C, L, H}


@pytest.mark.parametrize(("source", "destination"), list(itertools.product(SAID, SAID)))
def test_every_pair(source: str | None, destination: str | None) -> None:
    assert decide(source, destination) is TABLE.get((source, destination), Verdict.UNKNOWN)


@given(st.sampled_from(SAID), st.sampled_from(SAID))
def test_no_guess(source: str | None, destination: str | None) -> None:
    """A silent host makes no guest dead, nor undoes one that may run there; what is sent is undecided."""
    verdict = decide(source, destination)
    if None in (source, destination):
        assert verdict is not Verdict.DIED
    if destination in (R, P, C):
        assert verdict in (Verdict.PASSED, Verdict.UNKNOWN)
    if source in (V, C) and destination not in (R, P):
        assert verdict is Verdict.UNKNOWN
    if source is None and destination in (A, I, None):
        assert verdict is Verdict.UNKNOWN
    if verdict is Verdict.STAYED:
        assert source in (R, P, H)


@pytest.mark.parametrize("other", SAID)
def test_a_host_that_was_declared_dead_has_nothing(other: str | None) -> None:
    """What was coming from it never runs."""
    expected = Verdict.DIED if other == I else decide(A, other)
    assert decide(FENCED, other) is expected
    assert decide(other, FENCED) is decide(other, A)
