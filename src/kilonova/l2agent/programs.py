"""Running the system's programs (ip, dnsmasq, ovs-ofctl): without a shell, with a limit of time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from kilonova.errors import HostFault, TryAgain


class ProgramFailed(HostFault):
    """A program ended with an error.  ``stderr`` is what it said."""

    def __init__(self, command: Sequence[str], code: int, stderr: str) -> None:
        shown = " ".join(command)
        super().__init__(f"'{shown}' failed with code {code}: {stderr.strip() or 'it said nothing'}")
        self.code = code
        self.stderr = stderr


async def run(
    *command: str, stdin: str = "", timeout: float = 30.0, env: Mapping[str, str] | None = None
) -> str:
    """What the program wrote.  Raises ProgramFailed; HostFault if it is not installed; TryAgain if it hangs.

    The program is killed when it takes longer than ``timeout`` seconds, or when the caller is cancelled.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=None if env is None else {**os.environ, **env},
        )
    except FileNotFoundError:
        raise HostFault(f"The program '{command[0]}' is not installed on this host.") from None
    except OSError as error:
        raise HostFault(f"The program '{command[0]}' cannot be run: {error.strerror}.") from error
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate(stdin.encode())
    except TimeoutError:
        raise TryAgain(f"'{' '.join(command)}' did not end within {timeout:g} seconds.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise ProgramFailed(command, process.returncode, err.decode(errors="replace"))
    return out.decode(errors="replace")
