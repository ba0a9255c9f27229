"""Measure how fast files of guests go from agent to agent, against a plain copy of the same file in one run.

    python -m bench.transfer [--mib 1024] [--rounds 5] [--directory DIR]

Sender and receiver are processes of their own, as agents are; the file has no holes.  The plain copy is that
of ``cp``, and both end when the file is on the disk.  `cached`: the file is in the page cache before; `cold`:
it is not.
CPU is that of both ends, of the plain copy that of ``cp``; the kernel's own writes are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from kilonova.agent.transfer_inbox import FileInbox
from kilonova.agent.transfer_send import FileSender
from kilonova.rpc.moves import Inbox

MIB = 1 << 20


class Took(msgspec.Struct, frozen=True):
    """Seconds, by the clock and of processors."""

    wall: float
    cpu: float


def receive(directory: Path) -> None:
    """Take in files until standard input ends; the inbox is told on standard output, and at the end how much
    CPU it took."""
    inbox = FileInbox(directory, 1 << 40, "127.0.0.1", range(0))
    began = _cpu(resource.RUSAGE_SELF)
    print(msgspec.json.encode(inbox.inbox).decode(), flush=True)
    sys.stdin.read()
    inbox.close()
    print(_cpu(resource.RUSAGE_SELF) - began, flush=True)


def sent(file: Path, directory: Path) -> Took:
    """What it took to send a file into a directory, whole and checked."""
    command = [sys.executable, "-m", "bench.transfer", "--receive", str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdin is not None and receiver.stdout is not None
        inbox = msgspec.json.decode(receiver.stdout.readline(), type=Inbox)
        began, used = time.perf_counter(), _cpu(resource.RUSAGE_SELF)
        FileSender("bench", (file,), inbox, 0).send()
        wall, cpu = time.perf_counter() - began, _cpu(resource.RUSAGE_SELF) - used
        receiver.stdin.close()
        cpu += float(receiver.stdout.readline())
    return Took(wall, cpu)


def copied(file: Path, directory: Path) -> Took:
    began, used = time.perf_counter(), _cpu(resource.RUSAGE_CHILDREN)
    subprocess.run(["cp", "--reflink=never", "--sparse=never", str(file), str(directory)], check=True)
    subprocess.run(["sync", str(directory / file.name)], check=True)
    return Took(time.perf_counter() - began, _cpu(resource.RUSAGE_CHILDREN) - used)


def _cpu(whose: int) -> float:
    found = resource.getrusage(whose)
    return found.ru_utime + found.ru_stime


def _prepare(file: Path, cached: bool) -> None:
    """Have the file in the page cache, or not."""
    with file.open("rb") as opened:
        if cached:
            while opened.read(MIB):
                pass
        else:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(directory: Path, mib: int, rounds: int, *, cached: bool) -> dict[str, object]:
    file = directory / "disk"
    ways = {"sent": sent, "copied": copied}
    took: dict[str, list[Took]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            target = directory / name
            target.mkdir()
            _prepare(file, cached)
            took[name].append(way(file, target))
            assert (target / "disk").stat().st_size == file.stat().st_size
            shutil.rmtree(target)
            os.sync()  # what one has left is not the next one's
    speeds = {name: statistics.median(mib / each.wall for each in times) for name, times in took.items()}
    best = {name: max(mib / each.wall for each in times) for name, times in took.items()}
    cpu = {name: statistics.median(each.cpu for each in times) * 1024 / mib for name, times in took.items()}
    return {
        **{f"{name} MiB/s": round(speed) for name, speed in speeds.items()},
        **{f"{name} MiB/s, best": round(speed) for name, speed in best.items()},
        **{f"{name} CPU s/GiB": round(seconds, 2) for name, seconds in cpu.items()},
        "ratio": round(speeds["sent"] / speeds["copied"], 2),
        "ratio of the best": round(best["sent"] / best["copied"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to copy; default: a temporary one")
    parser.add_argument("--receive", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.receive is not None:
        receive(chosen.receive)
        return
    directory = Path(tempfile.mkdtemp(prefix="kn-transfer-", dir=chosen.directory))
    try:
        with (directory / "disk").open("wb") as out:
            for _ in range(chosen.mib):
                out.write(os.urandom(MIB))
        os.sync()
        for name, cached in (("cached", True), ("cold", False)):
            found = measure(directory, chosen.mib, chosen.rounds, cached=cached)
            known = {"mib": chosen.mib, "rounds": chosen.rounds}
            print(json.dumps({f"files of guests, {name}": {**known, **found}}), flush=True)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
