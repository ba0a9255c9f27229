"""``kilonova up``: the whole cloud in this process."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
from pathlib import Path

import click
import uvloop

from kilonova.db.engine import DatabaseUnavailable
from kilonova.errors import KilonovaError

M_MMAP_THRESHOLD = -3  # of malloc.h
LAST_MOMENT = 4.5  # seconds after SIGTERM; whoever stops us may wait for five


@click.command()
@click.option("--driver", type=click.Choice(["libvirt", "fake"]), default="libvirt", show_default=True)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/var/lib/kilonova"),
    show_default=True,
    help="Where the cloud keeps its state.",
)
@click.option("--port-offset", type=click.IntRange(0, 50000), default=0, help="Added to every port.")
@click.option("--listen", default="127.0.0.1", show_default=True, help="Address of all services.")
@click.option("--config-file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def up(driver: str, state_dir: Path, port_offset: int, listen: str, config_file: Path | None) -> None:
    """Run a whole compute cloud until SIGTERM or ^C."""
    from oslo_config import cfg

    from kilonova import log
    from kilonova.settings import Settings, read_options

    try:
        options = read_options(config_file)
    except cfg.Error as error:
        raise click.ClickException(f"{config_file}: {error}") from error
    settings = Settings(
        state_dir=state_dir.absolute(),
        driver=driver,
        listen=listen,
        port_offset=port_offset,
        config_file=config_file,
        options=options,
    )
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        log.configure(state_dir / "kilonova.log")
    except OSError as error:
        raise click.ClickException(f"Cannot write to {state_dir}: {error.strerror}.") from error
    _give_memory_back()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_run(settings))
        except (KilonovaError, DatabaseUnavailable) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{error.filename or state_dir}: {error.strerror}.") from error


def _give_memory_back() -> None:
    """Large blocks go back to the system when they are free.

    The work of hashing a password and the answers of long lists are such; glibc, left alone, raises its
    threshold at the first of them and keeps some thirty MiB from then on.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # other C libraries have none
        mallopt(M_MMAP_THRESHOLD, 128 * 1024)


async def _run(settings: object) -> None:
    from kilonova.app import EmbeddedCloud
    from kilonova.settings import Settings

    assert isinstance(settings, Settings)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def end() -> None:
        if not over.is_set():
            _end_in_any_case()
        over.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, end)
    cloud = await EmbeddedCloud.assemble(settings)
    try:
        starting = asyncio.create_task(_start(cloud))
        ending = asyncio.create_task(over.wait())
        await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        else:
            await starting
            click.echo(
                f"ready: {settings.url('compute')}/v2.1 "
                f"(export OS_CLIENT_CONFIG_FILE={settings.state_dir}/clouds.yaml OS_CLOUD=kilonova)"
            )
            sys.stdout.flush()
        await ending
    finally:
        await cloud.stop()


def _end_in_any_case() -> None:
    """Whatever hangs then, a call to a hypervisor for instance, goes on at the next start."""

    def give_up() -> None:
        os.write(2, b"kilonova: something did not end in time and is left behind.\n")
        os._exit(1)

    timer = threading.Timer(LAST_MOMENT, give_up)
    timer.daemon = True
    timer.start()


async def _start(cloud: object) -> None:
    from kilonova.app import EmbeddedCloud

    assert isinstance(cloud, EmbeddedCloud)
    cloud.listen()
    await cloud.start(lambda text: click.echo(f"kilonova: {text} ...", err=True))
    await cloud.serve()
