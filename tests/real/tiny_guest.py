"""A guest in one boot sector: it is up in a tenth of a second, says so on the serial console, hears the ACPI
power button, and goes off.  For tests of what a hypervisor does, where no operating system is needed.

The program, in 16-bit code at 0x7c00 (flags: 1 = deaf to the button, 2 = off at once):

    say "tiny: up"
    if flags & 2: goto off
    out 0x602, 0x100            ; PM1_EN: the power button counts
    wait: hlt                   ; until the next tick of the timer
    if flags & 1: goto wait
    if not in(0x600) & 0x100: goto wait   ; PM1_STS
    off: say "tiny: off"
    out 0x604, 0x2000           ; PM1_CNT: soft off
    goto wait
"""

from __future__ import annotations

CODE = bytes.fromhex(
    "31c08ed88ed0bc007cbe4a7ce82f00f606617c027519ba0206b80001effbf4f606617c0175f8ba0006edf6c40174efbe557c"
    "e80900ba0406b80020efebe0ac84c07406baf803eeebf5c374696e793a2075700d0a0074696e793a206f66660d0a00"
)
DEAF, QUITS = 1, 2
UP, OFF = b"tiny: up", b"tiny: off"
SIZE = 1 << 20


def image(flags: int = 0) -> bytes:
    """A raw disk of 1 MiB."""
    sector = (CODE + bytes([flags])).ljust(510, b"\0") + b"\x55\xaa"
    return sector.ljust(SIZE, b"\0")
