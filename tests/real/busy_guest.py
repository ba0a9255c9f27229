"""A guest in one boot sector that never rests: it dirties memory at a settable rate, counts on its disk, and
says so, for tests of live migration.

The program, in 16-bit code at 0x7c00 (assembled with GNU as):

    say "tiny: up"
    tick: hlt                        ; the timer's, 18.2 times a second
    for so many pages: increment one byte of each, from 2 MiB to END, round and round
    every 16 ticks: count += 1; write this sector to sector 1 (int 0x13, ah 0x43); say "tiny: alive"
    jump tick
"""

from __future__ import annotations

import struct
from pathlib import Path

CODE = bytes.fromhex(
    "31c08ed88ec08ed0bc007c8816937cfbbe7a7ce8580066bf0000200066bd00000000f4668b0ef07d67e31b67fe076681c700"
    "100000663b3ef47d720666bf00002000664975e545f7c50f0075d566ff06ec7dbe947c8a16937cb8004366576655cd13665d"
    "665fbe857ce80200ebb4ac84c07406baf803eeebf5c374696e793a2075700d0a0074696e793a20616c6976650d0a00001000"
    "0100007c0000010000000000000000"
)
UP, ALIVE = b"tiny: up", b"tiny: alive"
SIZE = 1 << 20
COUNT, PAGES, END = 0x1EC, 0x1F0, 0x1F4  # where they are in the sector
TICKS = 18.2


def image(pages: int, megabytes: int = 40) -> bytes:
    """A raw disk of 1 MiB.  The guest dirties ``pages`` of 4 KiB a tick, below ``megabytes``."""
    sector = bytearray(CODE.ljust(510, b"\0") + b"\x55\xaa")
    struct.pack_into("<II", sector, PAGES, pages, megabytes << 20)
    return bytes(sector).ljust(SIZE, b"\0")


def count(disk: bytes) -> int:
    """What the guest has written to its disk last."""
    return int(struct.unpack_from("<I", disk, 512 + COUNT)[0])


def log_path(instances: Path, uuid: str) -> Path:
    return instances / uuid / "console.log"
