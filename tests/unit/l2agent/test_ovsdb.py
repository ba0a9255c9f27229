"""The client of the switch's database, against a server of ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.clock import SystemClock
from kilonova.errors import Invalid, TryAgain, Unreachable
from kilonova.l2agent.jsonstream import JsonStream
from kilonova.l2agent.ovsdb import Ovsdb, Refusal, as_map, as_optional, as_set

TABLES = {"Port": ["name"]}


def row(name: str) -> dict[str, Any]:
    return {"new": {"name": name}}


class Mirror:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.ports: dict[str, str] = {}
        self.told: list[str] = []
        self.fail = 0

    def content(self, updates: dict[str, Any]) -> None:
        self.ports = {}
        self.told.append("content")
        self._take(updates)

    def changed(self, updates: dict[str, Any]) -> None:
        self.told.append("changed")
        self._take(updates)

    def _take(self, updates: dict[str, Any]) -> None:
        if self.fail:
            self.fail -= 1
            raise KeyError("a fault in the listener")
        for uuid, change in updates.get("Port", {}).items():
            self.ports[uuid] = change["new"]["name"]

    def lost(self) -> None:
        self.told.append("lost")


class Server:
    """Says to each method what ``answers`` has for it, and anything else that it is told to say."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"monitor": {"Port": {"1": row("one")}}, "transact": [{}]}
        self.after: dict[str, list[dict[str, Any]]] = {}  # said in the same breath as an answer
        self.heard: list[dict[str, Any]] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        stream = JsonStream()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                for text in stream.feed(data):
                    message = json.loads(text)
                    self.heard.append(message)
                    self._answer(message, writer)

    def _answer(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        method = message.get("method")
        if method not in self.answers:
            return
        answer = self.answers[method]
        whole = {"id": message["id"], "result": answer, "error": None}
        if isinstance(answer, str):
            whole = {"id": message["id"], "result": None, "error": answer}
        writer.write(b"".join(json.dumps(each).encode() for each in [whole, *self.after.get(method, [])]))

    def say(self, data: bytes) -> None:
        self.writers[-1].write(data)

    def hang_up(self) -> None:
        for writer in self.writers:
            writer.transport.abort()


def update(uuid: str, name: str) -> dict[str, Any]:
    return {"id": None, "method": "update", "params": ["all", {"Port": {uuid: row(name)}}]}


@contextlib.asynccontextmanager
async def listening(path: Path, server: Server) -> AsyncIterator[None]:
    listener = await asyncio.start_unix_server(server.serve, path)
    try:
        yield
    finally:
        listener.close()
        server.hang_up()
        path.unlink(missing_ok=True)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server()
    async with listening(tmp_path / "db.sock", server):
        yield server


@pytest.fixture
async def ovsdb(tmp_path: Path) -> AsyncIterator[Ovsdb]:
    ovsdb = Ovsdb(f"unix:{tmp_path}/db.sock", SystemClock(), timeout=30)
    yield ovsdb
    await ovsdb.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_content_is_there_when_open_returns_and_changes_follow(
    server: Server, ovsdb: Ovsdb
) -> None:
    mirror = Mirror()
    await ovsdb.open(TABLES, mirror)
    assert mirror.ports == {"1": "one"} and ovsdb.connected
    server.say(json.dumps(update("2", "zwei {}")).encode()[:20])
    server.say(json.dumps(update("2", "zwei {}")).encode()[20:])
    await until(lambda: mirror.ports == {"1": "one", "2": "zwei {}"})


async def test_a_change_right_behind_the_content_is_not_lost(server: Server, ovsdb: Ovsdb) -> None:
    mirror = Mirror()
    server.after["monitor"] = [update("2", "two"), update("1", "uno")]
    await ovsdb.open(TABLES, mirror)
    await until(lambda: len(mirror.told) == 3)
    assert mirror.told == ["content", "changed", "changed"]
    assert mirror.ports == {"1": "uno", "2": "two"}


async def test_echoes_are_answered(server: Server, ovsdb: Ovsdb) -> None:
    await ovsdb.open(TABLES, Mirror())
    server.say(b'{"method": "echo", "id": "probe", "params": ["x"]}')
    await until(lambda: {"id": "probe", "result": ["x"], "error": None} in server.heard)


async def test_results_and_errors_of_transactions(server: Server, ovsdb: Ovsdb) -> None:
    await ovsdb.open(TABLES, Mirror())
    server.answers["transact"] = [{"rows": []}, None]
    assert await ovsdb.transact({"op": "select"}, {"op": "comment"}) == [{"rows": []}, {}]
    assert server.heard[-1]["params"] == ["Open_vSwitch", {"op": "select"}, {"op": "comment"}]
    server.answers["transact"] = [{}, {"error": "constraint violation", "details": "two of a name"}]
    with pytest.raises(Refusal, match="refuses a change: constraint violation: two of a name"):
        await ovsdb.transact({"op": "insert"})
    server.answers["transact"] = [{"error": "timed out"}]
    with pytest.raises(TryAgain, match=r"timed out$"):
        await ovsdb.transact({"op": "wait"})
    server.answers["transact"] = "unknown database"
    with pytest.raises(Refusal, match="unknown database"):
        await ovsdb.transact()


async def test_whoever_waits_hears_when_the_server_goes_and_all_is_read_again(
    server: Server, ovsdb: Ovsdb, tmp_path: Path
) -> None:
    mirror = Mirror()
    await ovsdb.open(TABLES, mirror)
    del server.answers["transact"]
    waiting = asyncio.ensure_future(ovsdb.transact({"op": "select"}))
    await until(lambda: server.heard[-1].get("method") == "transact")
    server.answers["monitor"] = {"Port": {"9": row("nine")}}
    server.hang_up()
    with pytest.raises(Unreachable, match="in the middle of a call"):
        await waiting
    await until(lambda: mirror.ports == {"9": "nine"})
    assert mirror.told == ["content", "lost", "content"]


@pytest.mark.parametrize(
    "nonsense", [b"}", b"{]}", b"hello", b'{"id": 1}', b'{"method": "update", "params": []}']
)
async def test_a_server_that_talks_nonsense_is_connected_anew(
    server: Server, ovsdb: Ovsdb, nonsense: bytes
) -> None:
    mirror = Mirror()
    await ovsdb.open(TABLES, mirror)
    server.answers["monitor"] = {"Port": {"9": row("nine")}}
    server.say(nonsense)
    if nonsense == b'{"id": 1}':  # an answer that nobody waits for
        assert await ovsdb.transact() == [{}]
        return
    await until(lambda: mirror.ports == {"9": "nine"})
    assert await ovsdb.transact() == [{}]


async def test_a_fault_in_the_listener_does_not_make_it_deaf(server: Server, ovsdb: Ovsdb) -> None:
    mirror = Mirror()
    await ovsdb.open(TABLES, mirror)
    mirror.fail = 2  # of the update, and of the content that follows
    server.say(json.dumps(update("2", "two")).encode())
    await until(lambda: mirror.told.count("content") >= 3)
    server.say(json.dumps(update("3", "three")).encode())
    await until(lambda: mirror.ports == {"1": "one", "3": "three"})


async def test_a_silent_server_is_not_waited_for_for_ever(server: Server, tmp_path: Path) -> None:
    ovsdb = Ovsdb(f"unix:{tmp_path}/db.sock", SystemClock(), timeout=0.2)
    await ovsdb.open(TABLES, Mirror())
    del server.answers["transact"]
    with pytest.raises(Unreachable, match=r"did not answer in 0\.2 seconds"):
        await ovsdb.transact()
    server.answers["transact"] = [{}]
    await until(lambda: len(server.writers) == 2)  # it may come back to life on a new connection
    await until(lambda: ovsdb.connected)
    assert await ovsdb.transact() == [{}]
    await ovsdb.close()


async def test_no_server_is_unreachable_and_nothing_is_left_running(tmp_path: Path) -> None:
    ovsdb = Ovsdb(f"unix:{tmp_path}/none.sock", SystemClock())
    with pytest.raises(Unreachable, match="Is Open vSwitch running on this host"):
        await ovsdb.open(TABLES, Mirror())
    with pytest.raises(Unreachable, match="is not connected"):
        await ovsdb.transact()
    assert len(asyncio.all_tasks()) == 1


async def test_a_brief_connection_is_closed_again(server: Server, ovsdb: Ovsdb) -> None:
    async with ovsdb.briefly() as connected:
        assert await connected.transact() == [{}]
        assert [message["method"] for message in server.heard] == ["transact"]  # no monitor
    assert not ovsdb.connected
    async with ovsdb.briefly() as connected:
        assert await connected.transact() == [{}]


@pytest.mark.parametrize(
    "connection",
    [
        "",
        "unix:relative",
        "unix:",
        "tcp:10.0.0.1",
        "tcp:10.0.0.1:0",
        "tcp::6640",
        "tcp:a:99999",
        "ssl:a:1",
        "x",
    ],
)
def test_what_is_no_connection(connection: str) -> None:
    with pytest.raises(Invalid, match="is neither unix:/PATH nor tcp:ADDRESS:PORT"):
        Ovsdb(connection, SystemClock())


def test_where_the_switch_keeps_its_sockets() -> None:
    assert Ovsdb("unix:/a/b/db.sock", SystemClock()).directory == Path("/a/b")
    assert Ovsdb("tcp:[::1]:6640", SystemClock()).directory == Path("/run/openvswitch")


@given(st.dictionaries(st.text(), st.text()), st.lists(st.integers()))
def test_columns_are_read_as_they_are_sent(pairs: dict[str, str], numbers: list[int]) -> None:
    assert as_map(["map", [[key, value] for key, value in pairs.items()]]) == pairs
    sent = numbers[0] if len(numbers) == 1 else ["set", numbers]  # RFC 7047: one element is sent bare
    assert as_set(sent) == numbers
    assert as_optional(sent) == (numbers[0] if numbers else None)
    assert as_map(["set", []]) == {}
