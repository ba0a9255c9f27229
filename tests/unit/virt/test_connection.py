"""The connection, on libvirt's own test driver, which has events and needs no daemon."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.clock import SystemClock
from kilonova.errors import HostFault, NotFound, TryAgain, Unreachable
from kilonova.virt.libvirt import connection as module
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.domains import Domains
from kilonova.virt.libvirt.faults import translated, words
from tests.real.guests import eventually

NODE = """
<node>
  <domain type="test">
    <name>one</name><uuid>11111111-2222-4333-8444-555555555555</uuid><memory>8192</memory><vcpu>1</vcpu>
    <os><type>hvm</type></os>
    <metadata><k:guest xmlns:k="urn:kilonova:guest:1" compute_id="ours" started_at="77"/></metadata>
  </domain>
  <domain type="test">
    <name>two</name><uuid>21111111-2222-4333-8444-555555555555</uuid><memory>8192</memory><vcpu>1</vcpu>
    <os><type>hvm</type></os>
    <metadata><k:guest xmlns:k="urn:kilonova:guest:1" compute_id="theirs" started_at="77"/></metadata>
  </domain>
  <domain type="test">
    <name>three</name><uuid>31111111-2222-4333-8444-555555555555</uuid><memory>8192</memory><vcpu>1</vcpu>
    <os><type>hvm</type></os>
  </domain>
</node>
"""
ONE, TWO = "11111111-2222-4333-8444-555555555555", "21111111-2222-4333-8444-555555555555"
STOPPED, RESUMED, SUSPENDED = 5, 4, 3


class Ear:
    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []
        self.thread: set[int] = set()
        self.losses = 0
        self.returns = 0

    def lifecycle(self, uuid: str, event: int, detail: int) -> None:
        self.heard.append((uuid, event))
        self.thread.add(threading.get_ident())

    def rebooted(self, uuid: str) -> None:
        raise AssertionError("the test driver has no such event")

    def lost(self) -> None:
        self.losses += 1

    async def back(self) -> None:
        self.returns += 1


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
async def connection(tmp_path: Path, ear: Ear) -> AsyncIterator[Connection]:
    node = tmp_path / "node.xml"
    node.write_text(NODE)
    made = Connection(f"test://{node}", ear, SystemClock())
    await made.open()
    yield made
    await made.close()


async def test_calls_run_in_threads_and_give_their_results(connection: Connection) -> None:
    def work(link: Any) -> tuple[str, int]:
        return link.getType(), threading.get_ident()

    kind, thread = await connection.call(work)
    assert kind == "TEST"
    assert thread != threading.get_ident()


async def test_calls_run_side_by_side(connection: Connection) -> None:
    meeting = threading.Barrier(module.THREADS, timeout=30)
    await asyncio.gather(*(connection.call(lambda link: meeting.wait()) for _ in range(module.THREADS)))


async def test_events_come_into_the_loop(connection: Connection, ear: Ear) -> None:
    await connection.call(lambda link: link.lookupByUUIDString(ONE).suspend())
    await connection.call(lambda link: link.lookupByUUIDString(ONE).resume())
    await connection.call(lambda link: link.lookupByUUIDString(ONE).destroy())
    await eventually(lambda: len(ear.heard) == 3)
    assert ear.heard == [(ONE, SUSPENDED), (ONE, RESUMED), (ONE, STOPPED)]
    assert ear.thread == {threading.get_ident()}


async def test_errors_of_libvirt_are_the_hosts_and_others_are_their_own(connection: Connection) -> None:
    with pytest.raises(HostFault, match="libvirt: Domain not found"):
        await connection.call(lambda link: link.lookupByName("nobody"))

    def work(link: Any) -> None:
        raise NotFound("mine")

    with pytest.raises(NotFound, match="mine"):
        await connection.call(work)


async def test_a_cancelled_call_is_over_before_its_caller_goes_on(connection: Connection) -> None:
    begun, may_end = threading.Event(), threading.Event()
    ended = []

    def work(link: Any) -> None:
        begun.set()
        may_end.wait(30)
        ended.append(True)
        raise RuntimeError("which nobody waits for")

    task = asyncio.create_task(connection.call(work))
    await eventually(begun.is_set)
    task.cancel()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    await asyncio.wait({task})
    assert task.cancelled()
    assert ended == [True]


async def test_work_that_has_not_begun_is_dropped_with_its_caller(connection: Connection) -> None:
    may_end = threading.Event()
    busy = [
        asyncio.create_task(connection.call(lambda link: may_end.wait(30))) for _ in range(module.THREADS)
    ]
    done = []
    await asyncio.sleep(0)
    late = asyncio.create_task(connection.call(lambda link: done.append(True)))
    await asyncio.sleep(0)
    late.cancel()
    await asyncio.wait({late})
    may_end.set()
    await asyncio.gather(*busy)
    await connection.call(lambda link: None)
    assert done == []


async def test_after_the_end_there_are_no_calls(connection: Connection, ear: Ear) -> None:
    await connection.close()
    with pytest.raises(TryAgain, match="closed"):
        await connection.call(lambda link: None)
    assert ear.losses == 0


async def test_no_libvirtd(tmp_path: Path, ear: Ear) -> None:
    connection = Connection(f"qemu+unix:///system?socket={tmp_path}/none", ear, SystemClock())
    with pytest.raises(Unreachable, match=r"libvirtd cannot be reached at qemu\+unix.*Is it running\?"):
        await connection.open()
    await connection.close()


async def test_a_libvirtd_that_hangs(
    tmp_path: Path, ear: Ear, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "OPEN_TIMEOUT", 0.2)
    path = f"{tmp_path}/sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        connection = Connection(f"qemu+unix:///system?socket={path}", ear, SystemClock())
        for _ in range(2):  # the second waits behind the first, and is not forgotten either
            with pytest.raises(Unreachable, match=r"accepts no connection within 0\.2 seconds"):
                await connection.open()
        threads = list(connection._opener.threads)
        await connection.close()
    # it ends, and what it had to say comes late
    await eventually(lambda: not any(thread.is_alive() for thread in threads))
    await asyncio.sleep(0)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_connection_that_comes_too_late_is_closed(
    tmp_path: Path, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OPEN_TIMEOUT", 0.1)
    node = tmp_path / "node.xml"
    node.write_text(NODE)
    connection = Connection(f"test://{node}", ear, SystemClock())
    may_go_on, made = threading.Event(), []
    real = connection._connect

    def late() -> Any:
        may_go_on.wait(30)
        made.append(real())
        return made[0]

    monkeypatch.setattr(connection, "_connect", late)
    with pytest.raises(Unreachable):
        await connection.open()
    may_go_on.set()
    await eventually(lambda: made != [])
    await eventually(lambda: not connects(made[0].connect))
    await connection.close()


def connects(link: Any) -> bool:
    try:
        link.getHostname()
    except __import__("libvirt").libvirtError:
        return False
    return True


# ---- domains ----


@pytest.fixture
def domains(connection: Connection) -> Domains:
    return Domains(connection, "ours", SystemClock())


async def test_only_guests_with_our_mark_are_ours(domains: Domains) -> None:
    for _ in range(2):
        assert await domains.states() == {ONE: 1}
    assert await domains.started_at(ONE) == 77
    assert await domains.started_at("00000000-2222-4333-8444-555555555555") == 0


async def test_a_foreign_guest_that_becomes_ours_is_seen(connection: Connection, domains: Domains) -> None:
    await domains.states()
    await connection.call(lambda link: link.lookupByUUIDString(TWO).destroy())
    await connection.call(lambda link: link.lookupByUUIDString(TWO).undefine())
    assert await domains.states() == {ONE: 1}
    xml = NODE.split("</domain>")[0].split("<node>")[1].replace(ONE, TWO).replace("one", "two") + "</domain>"
    await domains.start(TWO, xml, paused=False)
    assert await domains.states() == {ONE: 1, TWO: 1}


async def test_a_definition_that_libvirt_refuses(domains: Domains) -> None:
    with pytest.raises(HostFault, match="libvirt refuses to define guest"):
        await domains.start(
            TWO.replace("2", "9"), "<domain type='test'><name>x</name></domain>", paused=False
        )


# ---- what errors mean ----


class Error:
    def __init__(self, text: str, code: int = 1, domain: int = 10) -> None:
        self.text, self.code, self.domain = text, code, domain

    def get_error_message(self) -> str:
        return self.text

    def get_error_code(self) -> int:
        return self.code

    def get_error_domain(self) -> int:
        return self.domain


def test_qemus_own_words_without_its_time_stamps() -> None:
    said = "internal error: process exited while connecting to monitor: "
    said += "2026-01-02T03:04:05.678901Z qemu-system-x86_64: -device foo:\n bad\n"
    expected = (
        "internal error: process exited while connecting to monitor: qemu-system-x86_64: -device foo: bad"
    )
    assert words(Error(said)) == expected
    assert len(words(Error("x" * 5000))) == 1000


def test_errors_by_what_can_be_done() -> None:
    libvirt = __import__("libvirt")
    assert isinstance(translated(libvirt, Error("x"), alive=True), HostFault)
    gone = translated(libvirt, Error("internal error: client socket is closed"), alive=False)
    assert isinstance(gone, TryAgain) and "libvirtd does not answer" in str(gone)
    for domain in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE):
        assert isinstance(translated(libvirt, Error("EOF", domain=domain), alive=True), TryAgain)
    busy = translated(libvirt, Error("lock", libvirt.VIR_ERR_OPERATION_TIMEOUT), alive=True)
    assert isinstance(busy, TryAgain) and "busy" in str(busy)
