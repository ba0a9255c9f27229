"""Ports for tests that run at the same time."""

from __future__ import annotations

import socket
import subprocess
import sys

from kilonova.settings import PORTS
from kilonova.testing.ports import _take, free_offset, free_port

ANOTHER = "import sys; from kilonova.testing.ports import _take; print(_take({int(sys.argv[1])}))"


def test_what_was_given_away_is_given_to_nobody_else() -> None:
    given = [free_port() for _ in range(5)]
    assert len(set(given)) == 5
    done = subprocess.run([sys.executable, "-c", ANOTHER, str(given[0])], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_a_cloud_s_ports_are_free_at_every_offset() -> None:
    offset = free_offset((0, 1))
    for port in PORTS.values():
        for more in (0, 1):
            with socket.create_server(("127.0.0.1", port + offset + more)):
                assert not _take({port + offset + more})


def test_where_something_listens_nothing_is_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert not _take([port])
    with socket.socket(socket.AF_UNIX) as mark:
        mark.bind(f"\0kilonova-test-port-{port}")
