"""Config drives: the metadata of a guest as a small disk, labelled ``config-2`` as cloud-init wants it.

The same content gives the same bytes.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from pathlib import Path, PurePosixPath

from kilonova import programs
from kilonova.errors import Failed
from kilonova.threads import Threads
from kilonova.virt.libvirt.files import settle

LABEL = "config-2"
DATE = 1_700_000_000  # every file's, in seconds since 1970
VFAT_LEAST = 64 << 20  # bytes, as Nova's
MOST = 64 << 20  # bytes of content: a drive is no store
_PLAIN = re.compile(r"[A-Za-z0-9._-]+")
_ENVIRONMENT = {"SOURCE_DATE_EPOCH": str(DATE), "TZ": "UTC", "LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1"}


async def write(content: dict[str, bytes], path: Path, form: str, threads: Threads) -> None:
    """Make ``path``, a drive with this content, whole or not at all; ``form`` is iso9660 or vfat.

    Raises Failed for paths that do not fit a drive, HostFault when the programs are not there.
    """
    _check(content)
    tree = Path(await asyncio.to_thread(tempfile.mkdtemp, dir=path.parent, prefix=".config-drive-"))
    draft = path.with_name(path.name + ".new")
    try:
        await threads.run(lambda: _lay_out(content, tree))
        await threads.run(lambda: _secret(draft))
        if form == "vfat":
            await _vfat(tree, draft, content)
        else:
            await _iso(tree, draft)
        await threads.run(lambda: settle(draft, path))
    finally:
        await threads.run(lambda: _tidy(tree, draft))


def _check(content: dict[str, bytes]) -> None:
    for name in content:
        parts = PurePosixPath(name).parts
        plain = all(_PLAIN.fullmatch(part) and part.strip(".") for part in parts)
        if not parts or not plain or len(name) > 200 or str(PurePosixPath(name)) != name:
            raise Failed(f"'{name}' cannot be a path on a config drive.")
    for name in content:
        if any(str(parent) in content for parent in PurePosixPath(name).parents):
            raise Failed(f"'{name}' cannot be on a config drive: a part of its path is a file.")
    size = sum(map(len, content.values()))
    if size > MOST:
        raise Failed(f"The config drive would have {size >> 20} MiB of content, at most {MOST >> 20} fit.")


def _lay_out(content: dict[str, bytes], tree: Path) -> None:
    for name, data in sorted(content.items()):  # some file systems list files as they were made
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    for directory, _, files in os.walk(tree, topdown=False):
        for each in (*files, "."):
            os.utime(Path(directory) / each, (DATE, DATE))


def _secret(draft: Path) -> None:
    """The empty file, before anything is in it that others should not read."""
    draft.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


async def _iso(tree: Path, draft: Path) -> None:
    """Rock Ridge for Linux, Joliet for Windows; everybody in the guest may read.

    By xorriso, since genisoimage puts the time of day into it.
    """
    await programs.run(
        "xorriso", "-as", "mkisofs", "-quiet", "-o", str(draft), "-J", "-r", "-V", LABEL,
        "-publisher", "Kilonova", str(tree),
        environment=_ENVIRONMENT,
    )  # fmt: skip


async def _vfat(tree: Path, draft: Path, content: dict[str, bytes]) -> None:
    size = sum(map(len, content.values()))
    sectors = max(VFAT_LEAST, size * 2 + (1 << 20)) // 512
    os.truncate(draft, sectors * 512)
    image = ("-i", str(draft))
    await programs.run(
        "mformat", *image, "-T", str(sectors), "-h", "16", "-s", "63", "-v", LABEL, "-N", "4b4e4344", "::",
        environment=_ENVIRONMENT,
    )  # fmt: skip
    tops = sorted({str(tree / PurePosixPath(name).parts[0]) for name in content})
    if tops:
        await programs.run("mcopy", *image, "-s", "-m", *tops, "::", environment=_ENVIRONMENT)


def _tidy(tree: Path, draft: Path) -> None:
    shutil.rmtree(tree)
    draft.unlink(missing_ok=True)
