"""Ports of this machine for tests that run at the same time, below those that the kernel gives away.

Who is given a port has it until the process ends, whether something listens there or not: of two processes
that look at the same moment one is told to take others.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import socket
from collections.abc import Collection, Iterable

from kilonova.settings import PORTS

_SINGLE = range(10_000, 15_000)
_OFFSETS = range(11_000, 22_000)  # 16,000 and above for the lowest of a cloud's ports

_held = contextlib.ExitStack()
atexit.register(_held.close)


def free_port() -> int:
    """A port where nothing listens."""
    return next(port for port in _from_here(_SINGLE) if _take({port}))


def free_offset(more: Iterable[int] = (0,)) -> int:
    """What to add to all ports of a cloud; with it and each of ``more`` they are free."""
    wanted = list(more)
    for offset in _from_here(_OFFSETS):
        if _take({port + offset + another for port in PORTS.values() for another in wanted}):
            return offset
    raise RuntimeError("There are not enough free ports.")


def _from_here(numbers: range) -> Iterable[int]:
    """All of them, beginning anywhere: who looks at the same moment begins elsewhere."""
    first = os.getpid() * 37 % len(numbers)
    return itertools.chain(numbers[first:], numbers[:first])


def _take(ports: Collection[int]) -> bool:
    """Have all of them, or none."""
    with contextlib.ExitStack() as marks, contextlib.ExitStack() as looks:
        try:
            for port in ports:
                mark = marks.enter_context(socket.socket(socket.AF_UNIX))
                mark.bind(f"\0kilonova-test-port-{port}")  # a name that ends with the process
                looks.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            return False
        _held.push(marks.pop_all())
    return True
