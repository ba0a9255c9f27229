"""Clients that send too much, or too slowly, or never read: they end, and nobody else notices."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from kilonova.web.connection import Limits
from kilonova.web.json import JsonResponse
from tests.unit.web.conftest import Serve
from tests.unit.web.test_server import Gate, echo, get, post

DEFAULT = Limits()


@pytest.mark.parametrize(
    "begin",
    [b"GET / HTTP/1.1\r\nX: ", b"GET /?", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 3000],
    ids=["one header", "path", "name", "many"],
)
async def test_a_head_that_does_not_end_is_refused(serve: Serve, begin: bytes) -> None:
    server = await serve(echo)
    client = await server.connect()
    await client.send(begin)
    sent = 0
    while sent <= DEFAULT.head_bytes + (1 << 19):  # the answer comes while the client still sends
        await client.send(b"x" * 4096)
        sent += 4096
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (431, "close")
    assert (await server.ask(get("/")))[0] == 200


async def test_a_large_head_that_comes_at_once(serve: Serve) -> None:
    server = await serve(echo)
    filling = "X-Auth-Token: " + "x" * 60_000
    assert (await server.ask(get("/", filling)))[0] == 200
    many = [f"X-{n}: {n}" for n in range(8_000)]
    assert (await server.ask(get("/", *many)))[0] == 431
    client = await server.connect()
    for _ in range(3):  # each by itself is small enough
        await client.send(get("/", filling))
        assert (await client.answer())[0] == 200


async def test_a_body_is_not_counted_as_a_head(serve: Serve) -> None:
    server = await serve(echo, head_bytes=1000)
    client = await server.connect()
    for _ in range(3):
        await client.send(post(b"x" * 100_000, "Content-Length: 100000"))
        assert (await client.answer())[0] == 200


async def test_a_head_that_comes_too_slowly_is_answered_408(serve: Serve) -> None:
    server = await serve(echo, head_seconds=10)
    client = await server.connect()
    for byte in b"GET / HTT":
        await client.send(bytes([byte]))
        await server.pass_seconds(1)
    assert await client.is_open()
    await server.pass_seconds(2)
    assert (await client.answer())[0] == 408
    assert await client.rest() == b""


async def test_a_slow_head_after_another_request_has_its_own_time(serve: Serve) -> None:
    server = await serve(echo, head_seconds=10)
    client = await server.connect()
    await server.pass_seconds(8)
    for _ in range(3):
        await client.send(get("/")[:-1])
        await server.pass_seconds(8)
        await client.send(b"\n")
        assert (await client.answer())[0] == 200


@pytest.mark.parametrize("dribble", [b"", b"\r\n"])
async def test_who_asks_nothing_is_hung_up_on(serve: Serve, dribble: bytes) -> None:
    server = await serve(echo, head_seconds=10, idle_seconds=20)
    fresh, used = await server.connect(), await server.connect()
    await used.send(get("/"))
    await used.answer()
    for client, seconds in ((fresh, 10), (used, 20)):
        for _ in range(seconds):
            if not await client.is_open():
                break
            await client.send(dribble)
            await server.pass_seconds(2)
        assert await client.rest() == b""


async def test_a_body_that_does_not_come_is_answered_408(serve: Serve) -> None:
    server = await serve(echo, body_seconds=10)
    client = await server.connect()
    await client.send(post(b"a", "Content-Length: 3"))
    await server.pass_seconds(12)
    assert (await client.answer())[0] == 408
    assert await client.rest() == b""


async def test_a_body_may_take_its_time_if_it_comes(serve: Serve) -> None:
    server = await serve(echo, body_seconds=10, body_bytes=100)
    steady, trickling = await server.connect(), await server.connect()
    for client in (steady, trickling):
        await client.send(post(b"", "Content-Length: 5000"))
    for n in range(50):
        await steady.send(b"x" * 100)
        if n < 11:
            await trickling.send(b"x")
        await server.pass_seconds(1)
    assert (await steady.answer())[0] == 200
    assert (await trickling.answer())[0] == 408


async def test_a_request_may_take_as_long_as_it_needs(serve: Serve) -> None:
    gate = Gate()
    server = await serve(gate, head_seconds=5, body_seconds=5, idle_seconds=5, write_seconds=5)
    client = await server.connect()
    await client.send(get("/long"))
    await server.until(lambda: gate.inside)
    await server.pass_seconds(100)
    gate.opened.set()
    assert (await client.answer())[0] == 200


async def test_a_client_that_does_not_read_is_hung_up_on(serve: Serve) -> None:
    ended: list[str] = []

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "http.request"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.create_task(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
            await asyncio.sleep(0)
        ended.append((await gone)["type"])

    server = await serve(endless, write_seconds=10)
    client = await server.connect()
    await client.send(get("/endless"))
    await server.until(lambda: any(each.flow.write_paused for each in server.http._connections()))
    await server.pass_seconds(8)
    assert server.connections == 1 and not ended
    await server.pass_seconds(4)
    await server.until(lambda: server.connections == 0 and ended == ["http.disconnect"])


async def test_the_rest_of_a_refused_body_is_taken_for_a_while(serve: Serve) -> None:
    """So that the client comes to read why it was refused."""
    server = await serve(echo, linger_seconds=10)
    client = await server.connect()
    await client.send(post(b"x" * 50_000, "Content-Length: 100000000"))
    assert (await client.answer())[0] == 413
    for _ in range(8):
        await client.send(b"x" * 100_000)
        await server.pass_seconds(1)
    assert await client.is_open()
    await server.pass_seconds(4)
    await server.until(lambda: server.connections == 0)


async def test_a_refused_body_that_ends_leaves_the_connection_usable(serve: Serve) -> None:
    server = await serve(echo, linger_seconds=10, idle_seconds=1000)
    client = await server.connect()
    await client.send(post(b"x" * 200_000, "Content-Length: 200000"))
    assert (await client.answer())[0] == 413
    await server.pass_seconds(20)
    await client.send(get("/again"))
    assert b"/again" in (await client.answer())[2]


async def test_after_nonsense_the_rest_is_thrown_away(serve: Serve) -> None:
    server = await serve(echo, linger_seconds=10)
    client = await server.connect()
    await client.send(b"\x00" * 10)
    await client.send(b"x" * 1_000_000)
    assert (await client.answer())[0] == 400, "the answer is not lost to what was still on its way"
    await server.pass_seconds(12)
    await server.until(lambda: server.connections == 0)


async def test_many_slow_clients_do_not_keep_others_waiting(serve: Serve) -> None:
    server = await serve(echo, head_seconds=10)
    slow = [await server.connect() for _ in range(200)]
    for client in slow:
        await client.send(b"GET / HTTP/1.1\r\nX: ")
    assert (await server.ask(get("/")))[0] == 200
    await server.until(lambda: server.connections >= 200)
    await server.pass_seconds(12)
    for client in slow:
        assert (await client.answer())[0] == 408


async def test_large_answers_arrive_whole(serve: Serve) -> None:
    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        await JsonResponse(["x" * 1000] * 5000)(scope, receive, send)

    server = await serve(large, write_seconds=10)
    client = await server.connect()
    await client.send(get("/"))
    status, _, body = await client.answer()
    assert (status, len(body)) == (200, 5000 * 1003 + 1)


async def test_a_client_that_only_has_finished_sending_gets_its_answers(serve: Serve) -> None:
    """As busybox' nc does when its standard input ends, with the answer still to come."""
    gate = Gate()
    server = await serve(gate)
    client = await server.connect()
    await client.send(get("/") + get("/"))
    client.writer.write_eof()
    await server.until(lambda: gate.inside == 1)
    assert await client.is_open()
    gate.opened.set()
    assert (await client.answer())[0] == 200
    assert (await client.answer())[0] == 200
    assert await client.rest() == b""
    await server.until(lambda: server.connections == 0)


@pytest.mark.parametrize(
    "sent", [b"", get("/")[:-2], post(b"xy", "Content-Length: 3")], ids=["nothing", "head", "body"]
)
async def test_a_client_that_ends_in_the_middle_is_hung_up_on(serve: Serve, sent: bytes) -> None:
    server = await serve(echo)
    client = await server.connect()
    await client.send(sent)
    client.writer.write_eof()
    assert await client.rest() == b""
    await server.until(lambda: server.connections == 0)
