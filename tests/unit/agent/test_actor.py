"""One verb at a time for each guest, and an end that waits for none."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from kilonova.agent.actor import Actor
from kilonova.errors import Failed, TryAgain


class Work:
    """Verbs that wait until they are let go, and write down what became of them."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.begun: dict[str, asyncio.Event] = {}

    def verb(self, name: str, *, error: Exception | None = None) -> Callable[[], Awaitable[str]]:
        self.gates[name], self.begun[name] = asyncio.Event(), asyncio.Event()

        async def run() -> str:
            self.log.append(f"{name} begins")
            self.begun[name].set()
            try:
                await self.gates[name].wait()
            except asyncio.CancelledError:
                self.log.append(f"{name} is ended")
                raise
            if error is not None:
                raise error
            self.log.append(f"{name} is done")
            return name

        return run

    def let(self, *names: str) -> None:
        for name in names:
            self.gates[name].set()


@pytest.fixture
def work() -> Work:
    return Work()


async def started(actor: Actor, work: Work, *names: str, urgent: bool = False) -> list[asyncio.Task[str]]:
    """Tasks for these verbs; the first has begun."""
    tasks = [asyncio.create_task(actor.run(work.verb(name), urgent=urgent)) for name in names]
    await asyncio.wait_for(work.begun[names[0]].wait(), 10)
    return tasks


async def test_verbs_run_one_after_the_other_in_the_order_of_their_coming(work: Work) -> None:
    actor = Actor()
    tasks = await started(actor, work, "a", "b", "c")
    assert actor.waiting == 3
    work.let("c", "b", "a")
    assert await asyncio.gather(*tasks) == ["a", "b", "c"]
    assert work.log == [f"{name} {what}" for name in "abc" for what in ("begins", "is done")]
    assert actor.waiting == 0


async def test_guests_do_not_wait_for_one_another(work: Work) -> None:
    (first,) = await started(Actor(), work, "a")
    (second,) = await started(Actor(), work, "b")
    work.let("b")
    assert await second == "b"
    work.let("a")
    assert await first == "a"


async def test_an_end_interrupts_the_verb_in_progress(work: Work) -> None:
    actor = Actor()
    (building,) = await started(actor, work, "build")
    (ending,) = await started(actor, work, "end", urgent=True)
    assert work.log == ["build begins", "build is ended", "end begins"]
    with pytest.raises(TryAgain):
        await building
    work.let("end")
    assert await ending == "end"


async def test_an_end_does_not_wait_for_those_in_the_queue(work: Work) -> None:
    actor = Actor()
    tasks = await started(actor, work, "build", "plug")
    (ending,) = await started(actor, work, "end", urgent=True)
    work.let("end")
    assert await ending == "end"
    for task in tasks:
        with pytest.raises(TryAgain):
            await task
    assert "plug begins" not in work.log
    (later,) = await started(actor, work, "later")  # what comes after it has its turn
    work.let("later")
    assert await later == "later"


async def test_an_end_is_not_interrupted_by_another(work: Work) -> None:
    actor = Actor()
    (first,) = await started(actor, work, "destroy", urgent=True)
    second = asyncio.create_task(actor.run(work.verb("discard"), urgent=True))
    await asyncio.sleep(0)
    work.let("destroy", "discard")
    assert await asyncio.gather(first, second) == ["destroy", "discard"]
    assert work.log == [f"{name} {what}" for name in ("destroy", "discard") for what in ("begins", "is done")]


async def test_the_end_of_the_caller_ends_its_verb(work: Work) -> None:
    actor = Actor()
    (building,) = await started(actor, work, "build")
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert work.log == ["build begins", "build is ended"]
    (after,) = await started(actor, work, "after")  # the turn is given on
    work.let("after")
    assert await after == "after"


async def test_who_waits_may_go_away(work: Work) -> None:
    actor = Actor()
    first, second = await started(actor, work, "a", "b")
    second.cancel()
    work.let("a")
    assert await first == "a"
    with pytest.raises(asyncio.CancelledError):
        await second
    assert actor.waiting == 0 and work.log == ["a begins", "a is done"]


async def test_a_fault_is_its_callers_alone(work: Work) -> None:
    actor = Actor()
    failing = asyncio.create_task(actor.run(work.verb("a", error=Failed("no disk"))))
    (fine,) = [asyncio.create_task(actor.run(work.verb("b")))]
    work.let("a", "b")
    with pytest.raises(Failed, match="no disk"):
        await failing
    assert await fine == "b"


async def test_what_a_verb_makes_of_its_end_is_waited_for(work: Work) -> None:
    """Its cleaning up belongs to it: the end begins after that."""
    actor, begun, cleaned = Actor(), asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await cleaned.wait()
            work.log.append("cleaned")

    building = asyncio.create_task(actor.run(stubborn))
    await begun.wait()
    ending = asyncio.create_task(actor.run(work.verb("end"), urgent=True))
    await asyncio.sleep(0)
    work.let("end")
    cleaned.set()
    assert await ending == "end"
    assert work.log == ["cleaned", "end begins", "end is done"]
    with pytest.raises(TryAgain):
        await building
