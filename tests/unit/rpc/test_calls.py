"""Questions and answers over a real nats-server."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

import msgspec
import pytest
from structlog.testing import capture_logs

from kilonova.clock import SECOND
from kilonova.errors import Conflict, Failed, HostFault, Invalid, TryAgain, Unreachable
from kilonova.rpc import wire
from kilonova.rpc.answers import Answerer
from kilonova.rpc.calls import Caller, NobodyThere
from kilonova.rpc.messages import Command
from kilonova.rpc.nats_link import Link
from kilonova.testing.bus import NatsServer, when
from kilonova.testing.clock import FastClock
from tests.unit.rpc.conftest import LinkTo

SUBJECT = "kn.host.h1.s1"


class Hands(Protocol):
    async def work(self, command: Command, text: str = "") -> str: ...

    async def ask(self, text: str) -> str: ...


VERBS = wire.verbs_of(Hands)


class Worker:
    """Works until it is told to go on."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None
        self.interrupted = 0

    async def work(self, command: Command, text: str = "") -> str:
        self.begun.append(command.id)
        return await self._done(text)

    async def ask(self, text: str) -> str:
        self.begun.append("?")
        return await self._done(text)

    async def _done(self, text: str) -> str:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.interrupted += 1
            raise
        if self.error is not None:
            raise self.error
        return f"done {text}"


class Pair:
    """A controller that asks, and a host that answers."""

    def __init__(self, controller: Link, host: Link, clock: FastClock, most: int) -> None:
        self.controller, self.host, self.clock = controller, host, clock
        self.worker = Worker()
        self.caller = Caller(controller, clock, silence=60)  # on a busy machine nothing is quick
        self.answerer = Answerer(
            host,
            clock,
            VERBS,
            lambda subject: self.worker,
            guard=lambda params: self.guard(params),
            most=most,
        )
        self.guard: Callable[[Any], None] = lambda params: None
        self.end: Callable[[], None] = lambda: None

    async def open(self) -> None:
        await self.caller.open(uuid.uuid4().hex)  # as in life: late answers are for nobody else
        self.answerer.start()
        self.end = await self.host.subscribe(f"{SUBJECT}.*", self.answerer.heard)
        await self.settle()

    async def settle(self) -> None:
        """What was sent has arrived at the server."""
        for link in (self.host, self.controller):
            assert link._client is not None
            await link._client.flush(10)

    async def work(self, command: str, text: str = "") -> Any:
        arguments = {"command": Command(id=command), "text": text}
        return await self.caller.call(f"{SUBJECT}.work", VERBS["work"], arguments, "The host")

    async def ask(self, text: str) -> Any:
        return await self.caller.call(f"{SUBJECT}.ask", VERBS["ask"], {"text": text}, "The host")

    async def raw(self, verb: str, data: bytes) -> None:
        await self.controller.publish(f"{SUBJECT}.{verb}", data, "kn.inbox.controllers.nobody.1")


@pytest.fixture
async def pair(shared_bus: NatsServer, link_to: LinkTo, fast: FastClock) -> AsyncIterator[Pair]:
    async with opened(shared_bus, link_to, fast) as made:
        yield made


@contextlib.asynccontextmanager
async def opened(bus: NatsServer, link_to: LinkTo, fast: FastClock, most: int = 256) -> AsyncIterator[Pair]:
    made = Pair(await link_to(bus.url), await link_to(bus.url, "h1"), fast, most)
    await made.open()
    try:
        yield made
    finally:
        made.end()
        made.worker.go.set()
        await made.answerer.stop()
        await made.caller.close()


async def test_a_question_is_answered(pair: Pair) -> None:
    assert await pair.work("c1", "it") == "done it"
    assert await asyncio.gather(*(pair.ask(str(each)) for each in range(50))) == [
        f"done {each}" for each in range(50)
    ]


@pytest.mark.parametrize("error", [Conflict("no"), HostFault("not here"), Failed("never"), TryAgain("later")])
async def test_what_is_raised_there_is_raised_here(pair: Pair, error: Exception) -> None:
    pair.worker.error = error
    with pytest.raises(type(error), match=str(error)):
        await pair.work("c1")


async def test_a_fault_that_nobody_foresaw_is_told_without_its_secrets(pair: Pair) -> None:
    pair.worker.error = ZeroDivisionError("password=secret")
    with capture_logs() as logs, pytest.raises(TryAgain, match="ZeroDivisionError") as caught:
        await pair.work("c1")
    assert "secret" not in str(caught.value)
    assert logs[0]["event"] == "a question was not answered"


async def test_repeats_join_the_task_that_runs_and_all_hear_its_end(pair: Pair) -> None:
    pair.worker.go.clear()
    asked = [asyncio.ensure_future(pair.work("c1", "it")) for _ in range(3)]
    other = asyncio.ensure_future(pair.work("c2", "other"))
    await when(lambda: set(pair.worker.begun) == {"c1", "c2"})
    await asyncio.sleep(0.05)
    pair.worker.go.set()
    assert await asyncio.gather(*asked) == ["done it"] * 3
    assert await other == "done other"
    assert sorted(pair.worker.begun) == ["c1", "c2"]
    assert await pair.work("c1", "again") == "done again"  # when it is over it is asked for anew
    assert sorted(pair.worker.begun) == ["c1", "c1", "c2"]


@pytest.mark.capability("RPC-7", "RPC-8")
async def test_nobody_is_given_up_for_taking_long(pair: Pair) -> None:
    pair.worker.go.clear()
    began = pair.clock.now()
    asked = asyncio.ensure_future(pair.work("c1", "it"))
    await when(lambda: pair.clock.now() - began > 130 * SECOND)
    assert not asked.done()
    pair.worker.go.set()
    assert await asked == "done it"


async def test_a_command_that_takes_long_is_sent_again_and_done_once(pair: Pair) -> None:
    """The server lets an agent answer for a while only."""
    heard: list[tuple[str, str]] = []
    await pair.host.subscribe(f"{SUBJECT}.*", lambda subject, data, reply: heard.append((subject, reply)))
    await pair.settle()
    pair.worker.go.clear()
    asked = [asyncio.ensure_future(pair.work("c1", "it")), asyncio.ensure_future(pair.ask("it"))]
    await when(lambda: len(heard) == 4)
    works = [each for each in heard if each[0].endswith(".work")]
    assert len(works) == 3 and len(set(works)) == 1
    assert sorted(pair.worker.begun) == ["?", "c1"]
    pair.worker.go.set()
    assert await asyncio.gather(*asked) == ["done it"] * 2


@pytest.mark.capability("RPC-7")
async def test_who_says_nothing_is_given_up(pair: Pair) -> None:
    quiet: list[str] = []
    end = await pair.host.subscribe("kn.host.h2.s1.*", lambda subject, data, reply: quiet.append(subject))
    await pair.settle()
    caller = Caller(pair.controller, pair.clock)
    await caller.open(uuid.uuid4().hex)
    await pair.settle()
    began = pair.clock.now()
    with pytest.raises(Unreachable, match="The host has said nothing for 8 seconds") as caught:
        await caller.call("kn.host.h2.s1.ask", VERBS["ask"], {"text": ""}, "The host")
    await caller.close()
    assert not isinstance(caught.value, NobodyThere)
    assert 8 * SECOND < pair.clock.now() - began < 60 * SECOND
    assert quiet == ["kn.host.h2.s1.ask"]
    end()


async def test_where_nobody_listens_is_known_at_once(pair: Pair) -> None:
    began = pair.clock.now()
    with pytest.raises(NobodyThere, match="The host is not connected"):
        await pair.caller.call("kn.host.h9.s1.ask", VERBS["ask"], {"text": ""}, "The host")
    assert pair.clock.now() - began < 25 * SECOND


async def test_one_who_is_busy_says_so(shared_bus: NatsServer, link_to: LinkTo, fast: FastClock) -> None:
    async with opened(shared_bus, link_to, fast, most=2) as pair:
        pair.worker.go.clear()
        asked = [asyncio.ensure_future(pair.work(each)) for each in ("c1", "c2")]
        await when(lambda: len(pair.worker.begun) == 2)
        with pytest.raises(TryAgain, match="busy with 2"):
            await pair.work("c3")
        joined = asyncio.ensure_future(pair.work("c1"))  # which costs nothing more
        await asyncio.sleep(0.05)
        pair.worker.go.set()
        assert await asyncio.gather(*asked, joined) == ["done "] * 3
        assert await pair.work("c3") == "done "


async def test_one_who_asks_too_much_leaves_room_for_others(
    shared_bus: NatsServer, link_to: LinkTo, fast: FastClock
) -> None:
    async with opened(shared_bus, link_to, fast, most=10) as pair:
        pair.answerer._most_of_one = 2
        end = await pair.host.subscribe("kn.host.h2.s1.*", pair.answerer.heard)
        await pair.settle()
        pair.worker.go.clear()
        asked = [asyncio.ensure_future(pair.work(each)) for each in ("c1", "c2")]
        await when(lambda: len(pair.worker.begun) == 2)
        with pytest.raises(TryAgain, match="busy"):
            await pair.ask("more")
        other = asyncio.ensure_future(
            pair.caller.call("kn.host.h2.s1.ask", VERBS["ask"], {"text": "it"}, "The host")
        )
        await when(lambda: len(pair.worker.begun) == 3)
        pair.worker.go.set()
        assert await asyncio.gather(*asked, other) == ["done ", "done ", "done it"]
        assert await pair.ask("more") == "done more"
        assert not pair.answerer._asking
        end()


async def test_a_lost_bus_ends_the_waiting(own_bus: NatsServer, link_to: LinkTo, fast: FastClock) -> None:
    own_bus.start()
    async with opened(own_bus, link_to, fast) as pair:
        pair.worker.go.clear()
        asked = asyncio.ensure_future(pair.work("c1", "it"))
        await when(lambda: pair.worker.begun)
        own_bus.kill()
        with pytest.raises(Unreachable, match="The bus was lost while The host was asked"):
            await asked
        await when(lambda: not pair.controller.connected and not pair.host.connected)
        with pytest.raises(Unreachable, match="no connection to NATS"):
            await pair.work("c1")
        own_bus.start()
        for link in (pair.controller, pair.host):
            await link.wait(20)
        again = asyncio.ensure_future(pair.work("c1", "it"))  # joins what has gone on all the time
        await asyncio.sleep(0.05)
        pair.worker.go.set()
        assert await again == "done it"
        assert pair.worker.begun == ["c1"]


async def test_at_its_end_it_lets_short_work_end_and_interrupts_the_rest(pair: Pair) -> None:
    pair.worker.go.clear()
    asked = [asyncio.ensure_future(pair.work(each)) for each in ("c1", "c2")]
    await when(lambda: len(pair.worker.begun) == 2)
    stopping = asyncio.ensure_future(pair.answerer.stop())
    await asyncio.sleep(0)
    with pytest.raises(TryAgain, match="shut down"):
        await pair.work("c3")
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [(type(each), str(each)) for each in found] == [(TryAgain, "It was interrupted.")] * 2
    assert pair.worker.interrupted == 2
    await stopping


async def test_work_that_ends_in_time_is_not_interrupted(pair: Pair) -> None:
    pair.worker.go.clear()
    asked = asyncio.ensure_future(pair.work("c1", "it"))
    await when(lambda: pair.worker.begun)
    stopping = asyncio.ensure_future(pair.answerer.stop())
    await asyncio.sleep(0.02)
    pair.worker.go.set()
    assert await asked == "done it"
    await stopping
    assert not pair.worker.interrupted


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x81\xa4text\x01", b"\x93\x01\x02\x03", b"\xdb\xff\xff\xff\xff"]
)
async def test_malformed_messages_are_refused_and_the_next_is_heard(pair: Pair, data: bytes) -> None:
    with capture_logs() as logs:
        await pair.raw("ask", data)
        await pair.raw("fly", data)
        assert await pair.ask("it") == "done it"
    assert [each["event"] for each in logs] == ["a message is refused"] * 2
    assert pair.worker.begun == ["?"]


async def test_an_unknown_verb_is_refused_with_the_reason(pair: Pair) -> None:
    verb = wire.Verb("fly", VERBS["ask"].params, str)
    with pytest.raises(Invalid, match="no verb 'fly' in this release"):
        await pair.caller.call(f"{SUBJECT}.fly", verb, {"text": ""}, "The host")


async def test_a_guard_refuses_before_anything_is_done(pair: Pair) -> None:
    def guard(params: Any) -> None:
        raise Conflict("not you")

    pair.guard = guard
    with pytest.raises(Conflict, match="not you"):
        await pair.work("c1")
    assert not pair.worker.begun


async def test_what_the_bus_does_not_carry_is_refused(pair: Pair) -> None:
    with pytest.raises(Failed, match="more than the bus carries"):
        await pair.ask("x" * (2 << 20))
    pair.worker.error = HostFault("y" * (2 << 20))
    with pytest.raises(Failed, match="more than the bus carries"):
        await pair.ask("it")
    pair.worker.error = None
    assert await pair.ask("it") == "done it"


@pytest.mark.parametrize("answer", [b"\xc1", msgspec.msgpack.encode({"type": "result"}), b"\x01"])
async def test_an_answer_that_is_none(pair: Pair, answer: bytes) -> None:
    async def reply(to: str) -> None:
        await pair.host.publish(to, answer)

    tasks: list[asyncio.Future[None]] = []
    end = await pair.host.subscribe(
        "kn.host.h3.s1.*", lambda subject, data, to: tasks.append(asyncio.ensure_future(reply(to)))
    )
    await pair.settle()
    with pytest.raises(Invalid, match="cannot be read"):
        await pair.caller.call("kn.host.h3.s1.ask", VERBS["ask"], {"text": ""}, "The host")
    end()
