"""Who is not heard when files of guests are sent, and what is not taken."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from kilonova.agent import transfer_channel, transfer_inbox, transfer_incoming
from kilonova.agent import transfer_wire as wire
from kilonova.agent.transfer_certificate import server_context
from kilonova.agent.transfer_inbox import FileInbox
from kilonova.errors import Failed, HostFault, Unreachable
from tests.unit.agent.transfer_stage import KEY, MIB, Hand, Stage, content, offered, sealed


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.inbox.close()


# ---- who is not heard, what is not taken ----


def test_without_the_token_nothing_is_taken(stage: Stage) -> None:
    stage.write("disk", content(100))
    with pytest.raises(Unreachable):
        stage.send(replace(stage.inbox.inbox, token="x" * 43))
    assert list(stage.target.iterdir()) == []
    stage.send()  # and the inbox is still good


def test_nothing_is_said_to_who_has_another_certificate(stage: Stage) -> None:
    """In the middle of the way sits one who answers with a certificate of his own."""
    stage.write("disk", content(100))
    context, _ = server_context()
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        raw, _ = listener.accept()
        with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as connection:
            heard.append(connection.recv(1000))

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(Unreachable, match="certificate"):
        stage.send(replace(stage.inbox.inbox, port=listener.getsockname()[1]))
    thread.join()
    listener.close()
    assert heard in ([], [b""])


def test_a_connection_without_tls_is_cut(stage: Stage) -> None:
    inbox = stage.inbox.inbox
    with socket.create_connection((inbox.address, inbox.port)) as raw:
        raw.sendall(b"GET / HTTP/1.0\r\n\r\n")
        raw.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(1000):
                pass
    stage.write("disk", content(10))
    stage.send()


@pytest.mark.parametrize("flip", [2000, MIB - 50_000, 2 * MIB - 50_000])
def test_bytes_that_were_changed_on_the_way_are_not_kept(stage: Stage, flip: int) -> None:
    stage.write("disk", content(3 * MIB))
    stage.cut(flip=flip)
    assert not (stage.target / "disk").exists()
    stage.send()
    stage.assert_same()


# ---- hostile peers: they know the token, and say what they should not ----


DATA = b"0123456789"


@pytest.mark.parametrize(
    "said",
    [
        [wire.Begin("disk.eph0")],
        [wire.End()],
        [DATA],
        [wire.Begin("disk"), wire.From(1)],
        [wire.Begin("disk"), wire.From(-1)],
        [wire.Begin("disk"), DATA],
        [wire.Begin("disk"), wire.From(0), wire.End()],
        [wire.Begin("disk"), wire.From(0), DATA[:9], wire.End()],
        [wire.Begin("disk"), wire.From(0), DATA + b"X", wire.End()],
        [wire.Begin("disk"), wire.From(0), DATA, b"X", wire.End()],
        [wire.Begin("disk"), wire.From(0), b"", DATA, wire.End()],
        [wire.Begin("disk"), wire.From(0), DATA, wire.Hole(1), wire.End()],
        [wire.Begin("disk"), wire.From(0), wire.Hole(11), wire.End()],
        [wire.Begin("disk"), wire.From(0), wire.Hole(0), DATA, wire.End()],
        [wire.Begin("disk"), wire.From(0), wire.Hole(-1), DATA, b"X", wire.End()],
        [wire.Begin("disk"), wire.From(0), wire.Ready(), DATA, wire.End()],
    ],
)
def test_what_makes_no_sense_cuts_the_transfer(stage: Stage, said: list[wire.Message | bytes]) -> None:
    hand = Hand(stage, offered())
    for each in said:
        with contextlib.suppress(OSError):  # it may be cut already
            hand.say(each)
        if each == wire.Begin("disk"):
            assert hand.hear() == wire.Have(0)
    hand.assert_cut()
    assert not (stage.target / "disk").exists()
    draft = stage.target / "disk.part"
    assert (
        not draft.exists() or draft.stat().st_size <= 10
    )  # nobody fills the disk with more than was offered


@pytest.mark.parametrize("head", ["ffffffff", "7fffffff", "80080001", "00010001"])
def test_a_record_that_is_too_long_is_not_waited_for(stage: Stage, head: str) -> None:
    hand = Hand(stage, offered())
    hand.connection.sendall(bytes.fromhex(head))
    hand.assert_cut()


def _records() -> list[bytes]:
    """Of a transfer of three times as much as a record is here."""
    said = wire.Begin("disk"), wire.From(0), b"1" * 10, b"2" * 10, b"3" * 10, wire.End()
    return sealed(*said)


@pytest.mark.parametrize(
    ("order", "good"),
    [
        ([0, 1, 2, 3, 4, 5], True),
        ([0, 1, 3, 2, 4, 5], False),  # out of order
        ([0, 1, 2, 2, 4, 5], False),  # one again instead of the next
        ([0, 1, 2, 3, 5], False),  # one is left out
        ([0, 1, 2, 3, 4], False),  # the end is left out
        ([0, 0, 1, 2, 3, 4, 5], False),
    ],
)
def test_records_count_once_and_in_their_order(stage: Stage, order: list[int], good: bool) -> None:
    hand = Hand(stage, offered(size=30))
    records = _records()
    with contextlib.suppress(OSError):
        for number in order:
            hand.connection.sendall(records[number])
        socket.socket.shutdown(hand.connection, socket.SHUT_WR)
    if good:
        assert hand.hear() == wire.Have(0)
        assert isinstance(hand.hear(), wire.Ready)
        assert (stage.target / "disk").read_bytes() == b"1" * 10 + b"2" * 10 + b"3" * 10
    else:
        with contextlib.suppress(OSError, wire.Broken):
            assert hand.hear() == wire.Have(0)
            hand.hear()
            raise AssertionError("it was taken")
        assert not (stage.target / "disk").exists()
    hand.connection.close()


@pytest.mark.parametrize("record", range(6))
@pytest.mark.parametrize("byte", [0, 3, 4, -1])
def test_a_record_of_which_a_bit_is_changed_is_none(stage: Stage, record: int, byte: int) -> None:
    """Also of the length, and of whether it is data."""
    hand = Hand(stage, offered(size=30))
    with contextlib.suppress(OSError):
        for number, each in enumerate(_records()):
            changed = bytearray(each)
            changed[byte] ^= 0x80 if number == record else 0
            hand.connection.sendall(changed)
        socket.socket.shutdown(hand.connection, socket.SHUT_WR)
    with contextlib.suppress(OSError, wire.Broken):
        while not isinstance(hand.hear(), wire.Ready):
            pass
        raise AssertionError("it was taken")
    assert not (stage.target / "disk").exists()
    hand.connection.close()


def test_records_under_another_key_are_none(stage: Stage) -> None:
    """As those of another connection are."""
    hand = Hand(stage, offered())
    for each in sealed(wire.Begin("disk"), key=bytes(32)):
        hand.connection.sendall(each)
    hand.assert_cut()


def test_what_the_inbox_has_said_is_not_taken_for_what_is_said_to_it(stage: Stage) -> None:
    hand = Hand(stage, offered())
    hand.say(wire.Begin("disk"))
    answer = hand.connection.recv(1000)
    hand.connection.sendall(answer)
    hand.assert_cut()


def test_keys_are_changed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record of the next key is not one of the former, and both sides change at the same record."""
    alike = sealed(*[b"x" * 100] * 2)
    monkeypatch.setattr(transfer_channel, "RECORDS_A_KEY", 2)
    records = sealed(*[b"x" * 100] * 6)
    assert records[:2] == alike and len(set(records)) == 6
    here, there = socket.socketpair()
    buffer = memoryview(bytearray(MIB))
    with here, there:
        receiving = transfer_channel.Channel(there, ours=KEY, theirs=KEY)
        for record in records:
            here.sendall(record)
            assert receiving.receive_into(buffer) == 100 and buffer[:100] == b"x" * 100


def test_no_record_is_sealed_as_another(stage: Stage) -> None:
    """Two connections of one inbox, and both directions of one: keys are never the same."""
    one, other = Hand(stage, offered()), Hand(stage, offered())
    assert isinstance(one.greeting, wire.Ready) and isinstance(other.greeting, wire.Ready)
    assert len({one.greeting.key, other.greeting.key, KEY}) == 3
    one.connection.close()
    other.connection.close()
    made: set[bytes] = set()

    def keys(connection: socket.socket, message: wire.Message) -> None:
        if isinstance(message, wire.Hello):
            made.add(message.key)
        real(connection, message)

    real = wire.send
    stage.write("disk", content(10))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "send", keys)
        stage.send()
        stage.send()
    assert len(made) == 2 and all(len(key) == 32 for key in made)


# ---- agents of the former release ----


def test_a_source_of_the_former_release_is_refused_with_the_reason(stage: Stage) -> None:
    hand = Hand(stage, offered(), key=None)
    assert isinstance(hand.greeting, wire.Refused) and not hand.greeting.host
    assert "has to be upgraded" in hand.greeting.message
    hand.assert_cut()


def test_a_destination_of_the_former_release_is_not_sent_to(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.write("disk", content(10))
    monkeypatch.setattr(transfer_inbox, "new_key", lambda: b"")
    monkeypatch.setattr(transfer_inbox, "Channel", lambda connection, **_: connection)
    with pytest.raises(HostFault, match="upgrade it"):
        stage.send()


@pytest.mark.parametrize(
    "files",
    [
        (offered("../disk"),),
        (offered("/etc/passwd"),),
        (offered(".disk"),),
        (offered("disk.part"),),
        (offered("disk/x"),),
        (offered(""),),
        (offered("disk\n"),),
        (offered("disk"), offered("disk")),
        (offered(size=-1),),
        (offered(allocated=-1),),
        (offered(size=(1 << 30) + 1),),
        (offered(size=1 << 29), offered("disk.eph0", size=(1 << 29) + 1)),
        tuple(offered(f"disk.x{number}", 1) for number in range(17)),
    ],
)
def test_other_files_than_a_guest_can_have_are_refused(stage: Stage, files: tuple[wire.Offer, ...]) -> None:
    hand = Hand(stage, *files)
    assert isinstance(hand.greeting, wire.Refused) and not hand.greeting.host
    hand.assert_cut()
    assert list(stage.target.iterdir()) == []


def test_what_is_refused_for_good_is_a_failure(tmp_path: Path) -> None:
    stage = Stage(tmp_path, limit=10)
    stage.write("disk", content(11))
    with pytest.raises(Failed, match="the guest can have 10"):
        stage.send()
    stage.inbox.close()


def test_a_link_is_not_followed(stage: Stage) -> None:
    secret = stage.source.parent / "secret"
    secret.write_bytes(b"secret")
    (stage.source / "disk").symlink_to(secret)
    with pytest.raises(Failed, match="cannot be read"):
        stage.send()
    assert not (stage.target / "disk").exists()


@pytest.mark.parametrize("left", [MIB + 5, MIB, 2 * MIB, 0])
def test_a_file_that_becomes_shorter_is_a_failure(
    stage: Stage, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not taken for one with a hole at its end."""
    path = stage.write("disk", content(3 * MIB))
    real = wire.offer

    def shorten(each: Path) -> wire.Offer:
        made = real(each)
        os.truncate(path, left)
        return made

    monkeypatch.setattr(wire, "offer", shorten)
    with pytest.raises(Failed, match=r"cannot be read: it (ends after|has less than)"):
        stage.send()


@given(data=st.binary(max_size=300))
@example(data=b"\x00\x00\x00\x00")
@example(data=b"\x00\x00\x00\x01\xc1")
@example(data=b"\x00\x01\x00\x01" + bytes(70_000))
def test_any_bytes_are_a_message_or_cut_the_transfer(data: bytes) -> None:
    here, there = socket.socketpair()
    with here, there:
        there.sendall(data)
        there.shutdown(socket.SHUT_WR)
        with contextlib.suppress(wire.Broken):
            assert isinstance(wire.receive(here), wire.Message)


# ---- limits ----


def test_a_disk_that_becomes_full_is_told_while_there_is_much_to_come(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than the connection holds: the sender has to hear it before it has sent all."""
    real, size = transfer_incoming._write_all, 128 * MIB

    def write_all(handle: int, view: memoryview, position: int) -> None:
        if position >= 3 * MIB:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle, view, position)

    monkeypatch.setattr(transfer_incoming, "_write_all", write_all)
    stage.write("disk", content(size))
    sender = stage.sender()
    with pytest.raises(HostFault, match="is full"):
        sender.send()
    assert sender._sent < size
    assert (stage.target / "disk.part").stat().st_size == 3 * MIB


@pytest.mark.real
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Before anything is sent where that can be told, and else when it is so; and it goes on with room."""
    stage = Stage(tmp_path)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(stage.target)], check=True)
    try:
        stage.write("disk", content(5 * MIB))
        with pytest.raises(HostFault, match="no room"):
            stage.send()
        (stage.target / "other").write_bytes(content(3 * MIB))
        stage.write("disk", content(2 * MIB))
        sender = stage.sender()
        sender_offer = wire.offer
        try:
            wire.offer = lambda path: replace(sender_offer(path), allocated=0)
            with pytest.raises(HostFault, match="is full"):
                sender.send()
        finally:
            wire.offer = sender_offer
        (stage.target / "other").unlink()
        stage.send()
        stage.assert_same()
    finally:
        stage.inbox.close()
        subprocess.run(["umount", str(stage.target)], check=True)


def test_what_does_not_fit_is_refused_before_it_is_sent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.write("disk", content(2 * MIB))
    real = os.statvfs

    class Full:
        f_bavail, f_frsize = 100, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Full if path == stage.target else real(path))
    with pytest.raises(HostFault, match="There is no room for the guest's files: 2 MiB are to come"):
        stage.send()
    assert list(stage.target.iterdir()) == []


def test_bandwidth_is_kept(stage: Stage) -> None:
    stage.write("disk", content(4 * MIB))
    sender = stage.sender(bandwidth=8 * MIB)
    sender.send()
    elapsed = sender.progress().elapsed
    assert elapsed is not None and elapsed >= 400
    stage.assert_same()


def test_ports_are_taken_from_the_range(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HostFault, match="No port can be opened"):
            FileInbox(tmp_path, 1, "127.0.0.1", range(port, port + 1))
    inbox = FileInbox(tmp_path, 1, "127.0.0.1", range(port, port + 1))
    assert inbox.inbox.port == port
    inbox.close()
