"""The HTTP server on a real port: whole requests, broken ones, pipelines, and its end."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from kilonova.errors import Failed
from kilonova.web.json import JsonResponse, read_body
from kilonova.web.requests import answering_errors
from kilonova.web.server import ByPort, HttpServer, bind
from tests.unit.web.conftest import Serve


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Says what it was asked; the path of the errors is that of the services."""

    async def answer(request: Request) -> JsonResponse:
        body = await read_body(request)
        return JsonResponse({"method": request.method, "path": request.url.path, "body": body.decode()})

    def refuse(status: int, text: str) -> JsonResponse:
        return JsonResponse({"error": text}, status)

    response = await answering_errors(answer, refuse)(Request(scope, receive))  # type: ignore[arg-type]
    await response(scope, receive, send)


class Gate:
    """An app that holds every request until it is opened; ``/stream`` sends without end."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.inside = 0
        self.ended: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        try:
            if scope["path"] == "/stream":
                await send({"type": "http.response.start", "status": 200, "headers": []})
                while True:
                    await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
                    await asyncio.sleep(0)
            await self.opened.wait()
            await JsonResponse({"path": scope["path"]})(scope, receive, send)
        except asyncio.CancelledError:
            self.ended.append(scope["path"])
            raise


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: cloud", *headers, "", ""]).encode()


def post(body: bytes, *headers: str) -> bytes:
    return "\r\n".join(["POST / HTTP/1.1", "Host: cloud", *headers, "", ""]).encode() + body


async def test_whole_requests(serve: Serve) -> None:
    server = await serve(echo)
    client = await server.connect()
    await client.send(post(b"abc", "Content-Length: 3"))
    status, headers, body = await client.answer()
    assert (status, headers["content-type"]) == (200, "application/json")
    assert body == b'{"method":"POST","path":"/","body":"abc"}'
    assert "server" not in headers
    for piece in post(b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n", "Transfer-Encoding: chunked"):
        await client.send(bytes([piece]))
    assert b'"body":"abcde"' in (await client.answer())[2]
    await client.send(b"\r\n" + get("http://other/x?y"))
    assert b'"path":"/x"' in (await client.answer())[2], "the connection is kept"
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert await client.rest() == b""


async def test_head_has_the_headers_of_get_and_no_body(serve: Serve) -> None:
    client = await (await serve(echo)).connect()
    await client.send(b"HEAD /a HTTP/1.1\r\nHost: cloud\r\n\r\n" + get("/b"))
    status, headers, _ = await client.answer(head=True)
    assert (status, headers["content-length"]) == (200, str(len('{"method":"HEAD","path":"/a","body":""}')))
    assert b'"path":"/b"' in (await client.answer())[2], "nothing stands between the two answers"


async def test_a_client_that_asks_first_is_told_to_go_on_or_not(serve: Serve) -> None:
    server = await serve(echo)
    client = await server.connect()
    await client.send(post(b"", "Content-Length: 3", "Expect: 100-continue"))
    assert (await client.answer())[0] == 100
    await client.send(b"abc")
    assert b'"body":"abc"' in (await client.answer())[2]
    await client.send(post(b"", "Content-Length: 99999999", "Expect: 100-continue"))
    assert (await client.answer())[0] == 413


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01", id="TLS"),
        pytest.param(b"SSH-2.0-x\r\n\r\n", id="SSH"),
        pytest.param(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", id="path"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a\r\n bad\r\n\r\n", id="header"),
        pytest.param(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", id="blank before colon"),
        pytest.param(b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n", id="NUL"),
        pytest.param(b"GET /\x00 HTTP/1.1\r\n\r\n", id="NUL in the path"),
        pytest.param(b"GOT / HTTP/1.1\r\n\r\n", id="method"),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", id="CONNECT"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
        pytest.param(post(b"abc", "Content-Length: abc"), id="length: letters"),
        pytest.param(post(b"abc", "Content-Length: -3"), id="length: negative"),
        pytest.param(post(b"abc", "Content-Length: +3"), id="length: sign"),
        pytest.param(post(b"abc", "Content-Length: 3, 3"), id="length: list"),
        pytest.param(post(b"abc", "Content-Length: "), id="length: empty"),
        pytest.param(post(b"abcd", "Content-Length: 3", "Content-Length: 4"), id="length: two"),
        pytest.param(post(b"abc", "Content-Length: " + "9" * 40), id="length: huge"),
        pytest.param(
            post(b"0\r\n\r\n", "Content-Length: 3", "Transfer-Encoding: chunked"), id="length and chunks"
        ),
        pytest.param(post(b"abc", "Transfer-Encoding: gzip"), id="unknown coding"),
        pytest.param(post(b"zz\r\nabc\r\n", "Transfer-Encoding: chunked"), id="chunk: size"),
        pytest.param(post(b"3\r\nabcd\r\n", "Transfer-Encoding: chunked"), id="chunk: longer"),
        pytest.param(post(b"f" * 20 + b"\r\nabc", "Transfer-Encoding: chunked"), id="chunk: huge"),
    ],
)
async def test_what_is_no_request_is_answered_400_and_ends_the_connection(serve: Serve, data: bytes) -> None:
    server = await serve(echo)
    client = await server.connect()
    await client.send(data)
    status, headers, _ = await client.answer()
    assert (status, headers["connection"]) == (400, "close")
    await client.send(get("/more"))
    assert await client.rest() == b""
    assert (await server.ask(get("/")))[0] == 200, "others are served on"


async def test_paths_of_odd_bytes(serve: Serve) -> None:
    server = await serve(echo)
    for path in ("/%00", "/%ff%e2%82", "/%", "/%zz", "/a%2Fb", "//", "/..%2f..", "*", "/?" + "%" * 50):
        assert (await server.ask(get(path)))[0] == 200
    for host in ("[", "a b", "a:b:c", "[::1", "%", "\xe9"):
        request = b"GET / HTTP/1.1\r\nHost: " + host.encode("latin-1") + b"\r\n\r\n"
        assert (await server.ask(request))[0] == 200


async def test_an_upgrade_is_not_taken_up(serve: Serve) -> None:
    server = await serve(echo)
    status, headers, _ = await server.ask(get("/", "Connection: Upgrade", "Upgrade: websocket"))
    assert (status, "upgrade" in headers) == (200, False)


async def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    server = await serve(echo)
    client = await server.connect()
    bodies = [post(b"%04d" % n, "Content-Length: 4") for n in range(500)]
    await client.send(b"".join(bodies))
    for n in range(500):
        assert b'"body":"%04d"' % n in (await client.answer())[2]


async def test_what_is_asked_before_nonsense_is_answered(serve: Serve) -> None:
    gate = Gate()
    server = await serve(gate)
    client = await server.connect()
    await client.send(get("/first") + get("/second") + b"\x00\x00\x00")
    await server.until(lambda: gate.inside == 1)
    gate.opened.set()
    assert (await client.answer())[2] == b'{"path":"/first"}'
    status, headers, body = await client.answer()
    assert (status, headers["connection"], body) == (200, "close", b'{"path":"/second"}')
    assert await client.rest() == b""


async def test_a_broken_body_ends_the_request_that_reads_it(serve: Serve) -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while not seen or seen[-1]["type"] != "http.disconnect":
            seen.append(await receive())

    server = await serve(app)
    client = await server.connect()
    await client.send(post(b"3\r\nabc\r\n", "Transfer-Encoding: chunked"))
    await server.until(lambda: seen)
    await client.send(b"nonsense\r\n")
    assert (await client.answer())[0] == 400
    await server.until(lambda: seen[-1]["type"] == "http.disconnect")


async def test_a_client_that_leaves_is_no_error(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = await serve(echo)
    client = await server.connect()
    with structlog.testing.capture_logs() as lines:
        await client.send(post(b"ab", "Content-Length: 3"))
        await server.until(lambda: server.connections == 1)
        await client.close()
        await server.until(lambda: server.connections == 0)
        assert (await server.ask(get("/")))[0] == 200
    assert lines == [] and caplog.records == []


async def test_each_port_has_its_app(serve: Serve) -> None:
    def saying(text: str) -> ASGIApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await JsonResponse({"app": text})(scope, receive, send)

        return app

    sockets = [bind("127.0.0.1", 0), bind("127.0.0.1", 0)]
    ports = [each.getsockname()[1] for each in sockets]
    server = HttpServer(ByPort({ports[0]: saying("one"), ports[1]: saying("two")}), sockets)
    await server.start()
    for port, text in zip(ports, (b"one", b"two"), strict=True):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(get("/", "Connection: close"))
        assert text in await reader.read()
        writer.close()
        await writer.wait_closed()
    await server.stop()


async def stop_in_time(server: HttpServer) -> None:
    begun = time.monotonic()
    await server.stop()
    assert time.monotonic() - begun < 5


async def test_stopping_lets_a_request_end_and_hangs_up_on_the_idle(serve: Serve) -> None:
    gate = Gate()
    server = await serve(gate)
    busy, idle, half = [await server.connect() for _ in range(3)]
    await busy.send(get("/busy"))
    await half.send(b"GET / HTTP/1.1\r\nHost:")
    await server.until(lambda: gate.inside == 1 and server.connections == 3)
    stopping = asyncio.create_task(server.http.stop())
    assert await idle.rest() == b""
    assert await half.rest() == b""
    with pytest.raises(ConnectionRefusedError):
        await server.connect()
    gate.opened.set()
    status, headers, body = await busy.answer()
    assert (status, headers["connection"], body) == (200, "close", b'{"path":"/busy"}')
    await stopping


async def test_stopping_tells_a_request_that_its_client_is_gone(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Who waits for a body that does not come ends as if the client had left: that is no error."""
    server = await serve(echo)
    client = await server.connect()
    with structlog.testing.capture_logs() as lines:
        await client.send(post(b"a", "Content-Length: 9"))
        await server.until(lambda: server.connections == 1)
        await stop_in_time(server.http)
    assert await client.rest() == b""
    assert lines == [] and caplog.records == []


async def test_what_a_proxy_would_say_is_not_believed(serve: Serve) -> None:
    async def who(scope: Scope, receive: Receive, send: Send) -> None:
        await JsonResponse([scope["scheme"], scope["client"][0]])(scope, receive, send)

    server = await serve(who)
    lies = ("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "Forwarded: for=192.0.2.1")
    assert (await server.ask(get("/", *lies)))[2] == b'["http","127.0.0.1"]'


async def test_stopping_does_not_wait_for_ever(serve: Serve) -> None:
    """One request that does not end, one client that does not read, one that does not send its body."""
    gate = Gate()
    server = await serve(gate)
    for data in (get("/stuck"), get("/stream"), post(b"a", "Content-Length: 9")):
        await (await server.connect()).send(data)
    await server.until(lambda: gate.inside == 3)
    await stop_in_time(server.http)
    assert sorted(gate.ended) == ["/", "/stream", "/stuck"]
    await server.until(lambda: server.connections == 0)


async def test_a_server_that_was_not_started_stops() -> None:
    listening = bind("127.0.0.1", 0)
    await HttpServer(echo, [listening]).stop()
    listening.close()


def test_a_taken_port_is_told() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Failed, match=rf"127\.0\.0\.1:{port}.*in use.*--port-offset"):
            bind("127.0.0.1", port)


def test_a_port_is_free_again_at_once() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            served, _ = _accept(first)
            served.close()  # the server's end closes first: TIME_WAIT
            assert client.recv(1) == b""
    bind("127.0.0.1", port).close()


def _accept(listening: socket.socket) -> tuple[socket.socket, Any]:
    listening.setblocking(True)
    return listening.accept()


@pytest.mark.parametrize("port", [70_000, -1, 65_536])
def test_a_port_that_does_not_exist_is_told(port: int) -> None:
    with pytest.raises(Failed, match=f"no port {port}"):
        bind("127.0.0.1", port)


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(Failed, match=r"192\.0\.2\.1:0"):
        bind("192.0.2.1", 0)
    with pytest.raises(Failed, match="no such address"):
        bind("no such address", 0)


def test_ipv6() -> None:
    with bind("::1", 0) as listening:
        assert listening.family == socket.AF_INET6
