"""What the commands that run for long have in common: settings, logs, signals, and an end in time."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click
import uvloop

from kilonova.errors import KilonovaError

if TYPE_CHECKING:
    from kilonova.settings import Settings

M_MMAP_THRESHOLD = -3  # of malloc.h
LAST_MOMENT = 4.5  # seconds after SIGTERM; whoever stops us may wait for five

config_file_option = click.option(
    "--config-file", type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
state_dir_option = click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/var/lib/kilonova"),
    show_default=True,
    help="Where it keeps its state.",
)


class Process(Protocol):
    """What runs until it is told to end."""

    async def stop(self) -> None: ...


def settings_of(state_dir: Path, config_file: Path | None, **more: Any) -> Settings:
    """The settings of a process, whose log is opened.  Raises ClickException for what cannot be."""
    from oslo_config import cfg

    from kilonova import log
    from kilonova.settings import Settings, read_options

    try:
        options = read_options(config_file)
    except cfg.Error as error:
        raise click.ClickException(f"{config_file}: {error}") from error
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        log.configure(state_dir / "kilonova.log")
    except OSError as error:
        raise click.ClickException(f"Cannot write to {state_dir}: {error.strerror}.") from error
    return Settings(state_dir=state_dir.absolute(), config_file=config_file, options=options, **more)


def run(main: Coroutine[Any, Any, None], what: str) -> None:
    """Run it to its end; what it cannot do is told in a line.  ``what`` is what an I/O error is about."""
    _give_memory_back()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(main)
        except KilonovaError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{error.filename or what}: {error.strerror}.") from error


async def until_told(
    process: Process, start: Callable[[], Awaitable[None]], ready: str, ended: asyncio.Event | None = None
) -> None:
    """Start it, say that it is ready, and stop it on SIGTERM or SIGINT, or when ``ended`` is set."""
    loop = asyncio.get_running_loop()
    over = ended or asyncio.Event()
    told = False

    def end() -> None:
        nonlocal told
        if not told:
            told = True
            end_in_any_case()
        over.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, end)
    try:
        starting = asyncio.ensure_future(start())
        ending = asyncio.ensure_future(over.wait())
        await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        else:
            await starting
            gc.freeze()  # what is there now stays: the collector need not look at it again and again
            click.echo(ready)
            sys.stdout.flush()
        await ending
    finally:
        await process.stop()


def progress(text: str) -> None:
    """Tell the terminal what is being done before it is ready."""
    click.echo(f"kilonova: {text} ...", err=True)


def _give_memory_back() -> None:
    """Large blocks go back to the system when they are free.

    The work of hashing a password and the answers of long lists are such; glibc, left alone, raises its
    threshold at the first of them and keeps some thirty MiB from then on.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(M_MMAP_THRESHOLD, 128 * 1024)


def end_in_any_case() -> None:
    """Whatever hangs then, a call to a hypervisor for instance, goes on at the next start."""

    def give_up() -> None:
        os.write(2, b"kilonova: something did not end in time and is left behind.\n")
        os._exit(1)

    timer = threading.Timer(LAST_MOMENT, give_up)
    timer.daemon = True
    timer.start()
