"""Commands of operations that were overtaken are refused, also after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.agent.fences import KEEP, Fences
from kilonova.clock import SECOND
from kilonova.errors import LostLease
from kilonova.rpc.messages import Command
from kilonova.testing.clock import VirtualClock


def command(action: int, epoch: int) -> Command:
    return Command(id=f"{action}.{epoch}", action=action, epoch=epoch)


def refused(fences: Fences, action: int, epoch: int, uuid: str = "u1") -> bool:
    try:
        fences.check(command(action, epoch), uuid)
    except LostLease:
        return True
    return False


STEPS = st.lists(
    st.tuples(st.sampled_from(["u1", "u2"]), st.integers(1, 4), st.integers(1, 4), st.booleans()),
    max_size=30,
)


@given(STEPS)
def test_for_each_guest_the_highest_that_was_heard_counts(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int, bool]]
) -> None:
    path, clock = tmp_path_factory.mktemp("fences") / "fences.db", VirtualClock()
    fences, highest = Fences(path, clock), dict[str, tuple[int, int]]()
    for uuid, action, epoch, restart in steps:
        if restart:
            fences.close()
            fences = Fences(path, clock)
        assert refused(fences, action, epoch, uuid) == ((action, epoch) < highest.get(uuid, (0, 0)))
        highest[uuid] = max(highest.get(uuid, (0, 0)), (action, epoch))
    fences.close()


def test_a_repeat_is_no_takeover_and_a_reason_is_given(tmp_path: Path) -> None:
    fences = Fences(tmp_path / "fences.db", VirtualClock())
    assert not refused(fences, 5, 2)
    assert not refused(fences, 5, 2)
    with pytest.raises(
        LostLease, match=r"Operation 5 \(epoch 1\) of server u1 was overtaken by 5 \(epoch 2\)"
    ):
        fences.check(command(5, 1), "u1")
    assert not refused(fences, 0, 0)  # of no operation
    fences.close()


def test_what_is_kept_for_a_week_is_forgotten_then(tmp_path: Path) -> None:
    clock, path = VirtualClock(), tmp_path / "fences.db"
    fences = Fences(path, clock)
    assert not refused(fences, 5, 2)
    fences.close()
    clock.advance(KEEP // SECOND)
    fences = Fences(path, clock)
    assert refused(fences, 5, 1)
    fences.close()
    clock.advance(1)
    fences = Fences(path, clock)
    assert not refused(fences, 5, 1)
    fences.close()
