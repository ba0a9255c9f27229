"""Whether an image that came from outside may be opened by QEMU.

The image service has looked at it already; a host does not rely on that: a qcow2 that names another file of
this host as its backing or data file would hand that file to the guest.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from kilonova import programs
from kilonova.errors import Failed
from kilonova.virt.libvirt import qcow2


async def check(path: Path, form: str, name: str) -> None:
    """Raises Failed, in words for the image's user; HostFault when qemu-img is not there."""
    if form != "qcow2":
        return
    head = await asyncio.to_thread(qcow2.read_head, path)
    if head is None:
        raise Failed(f"Image {name} is said to be qcow2 and is not. Upload it again with its true format.")
    for wrong, what in (
        (head.has_backing_file, "a backing file"),
        (head.has_data_file, "an external data file"),
        (head.encrypted, "encryption"),
    ):
        if wrong:
            raise Failed(f"Image {name} has {what}, which is not allowed. Convert it with qemu-img.")
    await _ask_qemu(path, name)


async def _ask_qemu(path: Path, name: str) -> None:
    """A second look, by the program that will read it: it knows all the tables behind the head."""
    try:
        answer = await programs.run(
            "qemu-img", "info", "-f", "qcow2", "--output=json", str(path), limited=True, timeout=60
        )
    except programs.ProgramFailed as error:
        raise Failed(f"Image {name} cannot be read: {error}") from error
    info = msgspec.json.decode(answer)
    data = info.get("format-specific", {}).get("data", {})
    if info.get("backing-filename") or info.get("full-backing-filename") or data.get("data-file"):
        raise Failed(f"Image {name} refers to another file, which is not allowed. Convert it with qemu-img.")
    if data.get("corrupt"):
        raise Failed(f"Image {name} is marked as corrupt. Repair it with 'qemu-img check -r all'.")
