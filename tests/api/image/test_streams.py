"""Data on the wire: chunked, cut off, too much of it, and never a whole image in memory."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.image.cloud import Cloud
from tests.api.image.conftest import Http

MIB = 1 << 20


def head(path: str, *lines: str, method: str = "PUT") -> bytes:
    fixed = ("Host: x", "X-Auth-Token: alice", "Content-Type: application/octet-stream")
    return "\r\n".join((f"{method} {path} HTTP/1.1", *fixed, *lines, "", "")).encode()


def until_status(alice: Http, image_id: str, status: str) -> None:
    """Ask until it is so; the server has no reason to take longer than the time-out."""
    for _ in range(2000):
        if alice("GET", f"/v2/images/{image_id}").json["status"] == status:
            return
    pytest.fail(f"the image is not {status}")


def test_a_chunked_upload_needs_no_length(alice: Http) -> None:
    image_id = alice.create()
    pieces = [os.urandom(n * 1000) for n in range(1, 60)]
    connection = http.client.HTTPConnection("127.0.0.1", alice.cloud.port, timeout=60)
    connection.request(
        "PUT",
        f"/v2/images/{image_id}/file",
        iter(pieces),
        {"X-Auth-Token": "alice", "Content-Type": "application/octet-stream"},
        encode_chunked=True,
    )
    assert connection.getresponse().status == 204
    connection.close()
    image = alice("GET", f"/v2/images/{image_id}").json
    assert image["checksum"] == hashlib.md5(b"".join(pieces)).hexdigest()


@pytest.mark.parametrize("framing", ["Content-Length: 5000000", "Transfer-Encoding: chunked"])
def test_a_client_that_goes_away_leaves_nothing(alice: Http, cloud: Cloud, framing: str) -> None:
    image_id = alice.create()
    before = cloud.files()
    with socket.create_connection(("127.0.0.1", cloud.port)) as raw:
        data = bytes(3 * MIB)
        chunked = framing.startswith("Transfer")
        raw.sendall(head(f"/v2/images/{image_id}/file", framing))
        raw.sendall(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
        until_status(alice, image_id, "saving")
        assert alice("GET", f"/v2/images/{image_id}/file").status == 204
    until_status(alice, image_id, "queued")
    assert cloud.files() == before
    assert alice.put(image_id, b"whole").status == 204


def test_a_client_that_stops_reading_lets_go_of_the_file(alice: Http, cloud: Cloud) -> None:
    image_id = alice.create()
    assert alice.put(image_id, bytes(32 * MIB)).status == 204
    with socket.create_connection(("127.0.0.1", cloud.port)) as raw:
        raw.sendall(head(f"/v2/images/{image_id}/file", method="GET"))
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
        assert opened(cloud, image_id) == 1
    for _ in range(2000):
        if opened(cloud, image_id) == 0:
            break
        alice("GET", "/versions")
    assert opened(cloud, image_id) == 0
    assert len(alice("GET", f"/v2/images/{image_id}/file").body) == 32 * MIB


def opened(cloud: Cloud, image_id: str) -> int:
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        try:
            found += str(each.readlink()) == str(cloud.directory / "images" / image_id)
        except FileNotFoundError:  # the directory listing's own descriptor
            continue
    return found


def test_many_uploads_and_downloads_at_once(alice: Http) -> None:
    data = {alice.create(): os.urandom(2 * MIB + n) for n in range(8)}
    got: dict[str, bytes] = {}

    def roundtrip(image_id: str) -> None:
        assert alice.put(image_id, data[image_id]).status == 204
        got[image_id] = alice("GET", f"/v2/images/{image_id}/file").body

    threads = [threading.Thread(target=roundtrip, args=(each,)) for each in data]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert got == data


def test_an_image_above_the_limit_is_refused(tmp_path: Path) -> None:
    with Cloud(tmp_path, size_limit=3 * MIB).serving() as small:
        alice = Http(small, "alice")
        image_id = alice.create()
        answer = alice.put(image_id, bytes(3 * MIB + 1))
        assert (answer.status, answer.json["code"]) == (413, 413)
        with socket.create_connection(("127.0.0.1", small.port)) as raw:
            raw.sendall(head(f"/v2/images/{image_id}/file", "Transfer-Encoding: chunked"))
            raw.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (4 * MIB, bytes(4 * MIB)))
            assert raw.recv(100).startswith(b"HTTP/1.1 413")
        assert small.files() == []
        assert alice.put(image_id, bytes(3 * MIB)).status == 204


@pytest.fixture
def program(tmp_path: Path) -> Iterator[tuple[int, Http]]:
    """The service as a process of its own; gives its process id."""
    command = [sys.executable, "-m", "tests.api.image.cloud", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            cloud = Cloud.__new__(Cloud)
            cloud.port, cloud.directory = port, tmp_path
            alice = Http(cloud, "alice")
            for _ in range(1000):
                try:
                    alice("GET", "/versions")
                    break
                except ConnectionError:
                    process.poll()
            yield process.pid, alice
        finally:
            process.kill()
            process.wait(10)


def peak(pid: int) -> int:
    """The most memory that the process ever had, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def test_memory_stays_flat(program: tuple[int, Http], tmp_path: Path) -> None:
    pid, alice = program
    small = alice.create()
    assert alice.put(small, bytes(4 * MIB)).status == 204
    alice("GET", f"/v2/images/{small}/file")
    before = peak(pid)
    large = alice.create()
    piece, size = os.urandom(MIB), 256 * MIB
    with socket.create_connection(("127.0.0.1", alice.cloud.port)) as raw:
        raw.sendall(head(f"/v2/images/{large}/file", f"Content-Length: {size}"))
        for _ in range(size // MIB):
            raw.sendall(piece)
        assert raw.recv(100).startswith(b"HTTP/1.1 204")
    with socket.create_connection(("127.0.0.1", alice.cloud.port)) as raw:
        raw.sendall(head(f"/v2/images/{large}/file", "Connection: close", method="GET"))
        received = 0
        while piece := raw.recv(MIB):
            received += len(piece)
    assert received > size
    assert peak(pid) - before < 24, f"{before} MiB grew to {peak(pid)} MiB"


def test_an_upload_of_a_killed_process_is_undone(program: tuple[int, Http], tmp_path: Path) -> None:
    pid, alice = program
    image_id = alice.create()
    with socket.create_connection(("127.0.0.1", alice.cloud.port)) as raw:
        raw.sendall(head(f"/v2/images/{image_id}/file", "Content-Length: 9000000") + bytes(3 * MIB))
        until_status(alice, image_id, "saving")
        os.kill(pid, 9)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with Cloud(tmp_path).serving() as again:
        alice = Http(again, "alice")
        assert alice("GET", f"/v2/images/{image_id}").json["status"] == "queued"
        assert again.files() == []
        assert alice.put(image_id, b"second try").status == 204
