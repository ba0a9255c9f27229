"""The watch over a bridge's management connection, against a switch of ours."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.clock import SystemClock
from kilonova.errors import Unreachable
from kilonova.l2agent.openflow import FlowWatch, answers

HELLO, ECHO_REQUEST, ECHO_REPLY = 0, 2, 3
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def message(kind: int, body: bytes = b"", number: int = 7) -> bytes:
    return struct.pack("!BBHI", 5, kind, 8 + len(body), number) + body


@contextlib.asynccontextmanager
async def switch(path: Path, talk: Talk) -> AsyncIterator[None]:
    """Listens at ``path``; each connection gets ``talk``."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await talk(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


class Ups:
    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Event()

    async def __call__(self) -> None:
        self.count += 1
        self._changed.set()

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(30):
            while self.count < count:
                self._changed.clear()
                await self._changed.wait()


async def test_each_new_connection_is_told_and_echoes_are_answered(tmp_path: Path) -> None:
    path, ups = tmp_path / "br.mgmt", Ups()
    echoed: list[bytes] = []
    watch = FlowWatch(path, SystemClock(), ups)
    watch.start()  # before there is a switch

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(8) == message(HELLO, number=1)
        writer.write(message(HELLO) + message(ECHO_REQUEST, b"are you there", 99)[:10])
        await writer.drain()
        writer.write(message(ECHO_REQUEST, b"are you there", 99)[10:] + message(77, b"whatever"))
        echoed.append(await reader.readexactly(8 + 13))

    async with switch(path, talk):
        await ups.reach(2)  # talk ends, the connection breaks, and the watch comes again
    await watch.stop()
    assert echoed[0] == message(ECHO_REPLY, b"are you there", 99)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=6), st.binary(max_size=12))
async def test_whatever_a_switch_says_it_is_read_in_whole_messages(
    tmp_path: Path, messages: list[tuple[int, bytes]], rest: bytes
) -> None:
    path, ups = tmp_path / "br.mgmt", Ups()
    replies: list[bytes] = []
    done = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if done.is_set():
            return
        await reader.readexactly(8)
        writer.write(message(HELLO) + b"".join(message(kind, body) for kind, body in messages) + rest)
        for _ in range(sum(kind == ECHO_REQUEST for kind, _ in messages)):
            head = await reader.readexactly(8)
            replies.append(await reader.readexactly(struct.unpack("!H", head[2:4])[0] - 8))
        done.set()

    async with switch(path, talk):
        watch = FlowWatch(path, SystemClock(), ups)
        watch.start()
        async with asyncio.timeout(30):
            await done.wait()
        await ups.reach(1)
        await watch.stop()
    assert replies == [body for kind, body in messages if kind == ECHO_REQUEST]


async def test_a_switch_that_says_hello_answers(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(message(HELLO))
        await reader.read()

    async with switch(tmp_path / "br.mgmt", talk):
        await answers(tmp_path / "br.mgmt", 30)


async def test_one_that_is_not_there_hangs_up_or_says_nothing_does_not(tmp_path: Path) -> None:
    path = tmp_path / "br.mgmt"
    with pytest.raises(Unreachable, match="Is ovs-vswitchd running"):
        await answers(path, 30)

    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"1234")

    async with switch(path, hangs_up):
        with pytest.raises(Unreachable, match="does not answer"):
            await answers(path, 30)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with switch(path, silent):
        with pytest.raises(Unreachable, match=r"said nothing within 0\.05 seconds"):
            await answers(path, 0.05)
