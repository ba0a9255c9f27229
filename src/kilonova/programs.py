"""Running the system's programs (ip, dnsmasq, qemu-img): without a shell, with limits of time and, for files
that users gave, of processor and memory (qemu-img has been fooled by crafted images more than once)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from kilonova.errors import HostFault

SEARCHED = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # mke2fs and dnsmasq are in there

# Nova's limits for looking at an image.
LIMITS = ("prlimit", "--cpu=30", "--as=1073741824", "--")


class ProgramFailed(HostFault):
    """A program ended with an error.  ``stderr`` is what it said."""

    def __init__(self, command: Sequence[str], code: int, stderr: str) -> None:
        said = " ".join(stderr.split())[-1000:] or "it said nothing"
        super().__init__(f"'{' '.join(command)}' failed with code {code}: {said}")
        self.code = code
        self.stderr = stderr


def _file_of(text: str) -> int:
    """A file in memory with the text.  A pipe would have to be written to: a program that ends without
    having read it all breaks that in ways that depend on the event loop."""
    handle = os.memfd_create("stdin", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(handle), "wb") as file:
        file.write(text.encode())
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


async def run(
    *command: str,
    stdin: str = "",
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    limited: bool = False,
) -> str:
    """What the program wrote.

    Raises ProgramFailed; HostFault if it cannot be run or does not end.  It is killed when it takes longer
    than ``timeout`` seconds, or when the caller is cancelled.
    """
    line = (*LIMITS, *command) if limited else command
    told = _file_of(stdin)
    try:
        process = await asyncio.create_subprocess_exec(
            *line,
            stdin=told,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=cwd,
            env={**os.environ, "PATH": SEARCHED, **(environment or {})},
        )
    except FileNotFoundError:
        raise HostFault(f"The program '{line[0]}' is not installed on this host.") from None
    except OSError as error:
        raise HostFault(f"The program '{line[0]}' cannot be run: {error.strerror}.") from error
    finally:
        os.close(told)
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate()
    except TimeoutError:
        raise HostFault(f"'{' '.join(command)}' did not end within {timeout:g} seconds.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ProgramFailed(command, process.returncode, err.decode(errors="replace"))
    return out.decode(errors="replace")
