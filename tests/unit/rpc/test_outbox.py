from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from kilonova.clock import SECOND
from kilonova.errors import Unreachable
from kilonova.rpc import outbox as module
from kilonova.rpc.messages import Observed
from kilonova.rpc.outbox import Outbox
from kilonova.testing.clock import VirtualClock, until


class Ear:
    """A desk that hears, or does not."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.deaf = False
        self.asked: list[int] = []  # when
        self.heard: list[tuple[Observed, ...]] = []
        self.while_hearing: list[Observed] = []
        self.box: Outbox

    async def observed(self, seen: tuple[Observed, ...], *, all_at: int = 0) -> None:
        self.asked.append(self.clock.now())
        if self.deaf:
            raise Unreachable("nobody")
        while self.while_hearing:
            await self.box.put(self.while_hearing.pop())
        self.heard.append(seen)


def seen(uuid: str, generation: int, state: int = 1) -> Observed:
    return Observed(uuid=uuid, power_state=state, generation=generation)


@pytest.fixture
async def ear() -> AsyncIterator[Ear]:
    clock = VirtualClock()
    made = Ear(clock)
    made.box = Outbox(made, clock)  # type: ignore[arg-type]
    made.box.start()
    yield made
    await made.box.stop()


async def test_what_was_seen_is_told_once(ear: Ear) -> None:
    await ear.box.put(seen("u1", 1))
    await until(lambda: ear.heard, ear.clock)
    for _ in range(20):
        await asyncio.sleep(0)
        ear.clock.advance(60)
    assert ear.heard == [(seen("u1", 1),)]


async def test_it_is_told_until_it_is_heard_with_the_last_word_only_and_less_and_less_often(ear: Ear) -> None:
    ear.deaf = True
    for generation in (1, 3, 2):
        await ear.box.put(seen("u1", generation, generation))
    await ear.box.put(seen("u2", 1))
    await until(lambda: len(ear.asked) == 8, ear.clock)
    pauses = [(after - before) / SECOND for before, after in zip(ear.asked, ear.asked[1:], strict=False)]
    assert [round(each) for each in pauses] == [1, 1, 2, 4, 8, 10, 10] or pauses == sorted(pauses)
    assert 0.5 <= pauses[0] <= 1 and 10 <= pauses[-1] <= 11
    ear.deaf = False
    await until(lambda: ear.heard, ear.clock)
    assert ear.heard == [(seen("u1", 3, 3), seen("u2", 1))]


async def test_what_changes_while_it_is_told_is_told_again(ear: Ear) -> None:
    ear.while_hearing = [seen("u1", 2, 4)]
    await ear.box.put(seen("u1", 1))
    await until(lambda: len(ear.heard) == 2, ear.clock)
    assert ear.heard == [(seen("u1", 1),), (seen("u1", 2, 4),)]


async def test_many_are_told_in_parts(ear: Ear) -> None:
    ear.deaf = True
    for number in range(module.MOST + 1):
        await ear.box.put(seen(f"u{number}", 1))
    ear.deaf = False
    await until(lambda: sum(map(len, ear.heard)) == module.MOST + 1, ear.clock)
    assert [len(each) for each in ear.heard] == [module.MOST, 1]


async def test_after_a_success_it_is_patient_anew(ear: Ear) -> None:
    ear.deaf = True
    await ear.box.put(seen("u1", 1))
    await until(lambda: len(ear.asked) == 6, ear.clock)
    ear.deaf = False
    await until(lambda: ear.heard, ear.clock)
    ear.deaf, begin = True, len(ear.asked)
    await ear.box.put(seen("u1", 2))
    await until(lambda: len(ear.asked) == begin + 2, ear.clock)
    assert (ear.asked[begin + 1] - ear.asked[begin]) / SECOND <= 1
