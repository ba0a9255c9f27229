"""``kilonova simulate``: many hosts of records on the real bus: scale is measured, not hoped for."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kilonova.cli.running import config_file_option, run, settings_of, state_dir_option, until_told

if TYPE_CHECKING:
    from kilonova.settings import Settings
    from kilonova.simulation import Plan

VERBS = ("prepare", "discard", "start", "resume", "power_off", "undefine")


def _faults(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for value in values:
        verb, colon, chance = value.partition(":")
        try:
            found[verb] = float(chance)
        except ValueError:
            colon = ""
        if not colon or verb not in VERBS or not 0 <= found[verb] <= 1:
            raise click.BadParameter(f"'{value}' is not VERB:CHANCE with one of {', '.join(VERBS)}.")
    return found


@click.command()
@click.option("--hosts", type=click.IntRange(1, 100_000), default=100, show_default=True)
@click.option("--first", type=click.IntRange(0), default=1, help="The number of the first one.")
@click.option("--prefix", default="sim-", show_default=True, help="Of their names.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, help="That they are spread over.")
@click.option("--delay", type=click.FloatRange(0), default=0.0, help="Seconds that every verb takes.")
@click.option("--fault", "faults", multiple=True, callback=_faults, help="VERB:CHANCE, e.g. start:0.02.")
@click.option("--servers", type=click.IntRange(0), default=0, help="To be booted on them.")
@click.option("--flavor", default="1", show_default=True, help="Of the servers.")
@click.option("--image", default="", help="Name or id; default: the first one.")
@click.option(
    "--clouds-yaml",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="OS_CLIENT_CONFIG_FILE",
    help="Of the cloud in which servers are booted.",
)
@click.option("--os-cloud", default="kilonova-admin", envvar="OS_CLOUD", show_default=True)
@click.option("--seed", type=int, default=0, help="Of what goes wrong.")
@click.option("--part", is_flag=True, hidden=True, help="End when standard input does.")
@state_dir_option
@config_file_option
def simulate(processes: int, part: bool, state_dir: Path, config_file: Path | None, **about: Any) -> None:
    """Run many simulated hosts until SIGTERM or ^C; controllers see each as a host of its own.

    With --servers, boot so many through the Compute API once the hosts have reported.
    """
    from kilonova.simulation import Plan

    settings = settings_of(state_dir, config_file, driver="fake")
    then = _servers(
        **{name: about.pop(name) for name in ("servers", "flavor", "image", "clouds_yaml", "os_cloud")}
    )
    plan = Plan(**about)
    if processes > 1:
        run(_spread(state_dir, config_file, plan, processes, then), str(state_dir))
    else:
        run(_run(settings, plan, then, part), str(state_dir))


def _servers(
    servers: int, flavor: str, image: str, clouds_yaml: Path | None, os_cloud: str
) -> Callable[[], Awaitable[None]]:
    """What boots the servers when the hosts are there."""

    async def boot() -> None:
        if servers:
            from kilonova.cli.simulated_servers import Session
            from kilonova.cli.simulated_servers import boot as boot_servers

            assert clouds_yaml is not None
            await boot_servers(Session(clouds_yaml, os_cloud), servers, flavor, image)

    if servers and clouds_yaml is None:
        raise click.UsageError("--servers needs --clouds-yaml, or OS_CLIENT_CONFIG_FILE.")
    return boot


async def _run(settings: Settings, plan: Plan, then: Callable[[], Awaitable[None]], part: bool) -> None:
    from kilonova.simulation import Simulation

    simulation = Simulation.assemble(settings, plan)

    def progress(number: int) -> None:
        if number % 100 == 0 or number == plan.hosts:
            click.echo(f"hosts: {number} of {plan.hosts}", err=True)

    async def start() -> None:
        await simulation.start(progress)
        await then()

    over = asyncio.Event()
    if part:  # whoever has started us is gone then, however it ended
        asyncio.get_running_loop().add_reader(sys.stdin, _end_at_eof, over)
    await until_told(simulation, start, f"ready: {plan.hosts} hosts, {plan.names()[0]} and on", over)


def _end_at_eof(over: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 1):
        asyncio.get_running_loop().remove_reader(sys.stdin)
        over.set()


class _Children:
    """The processes that the hosts are spread over."""

    def __init__(self) -> None:
        self.processes: list[asyncio.subprocess.Process] = []

    async def stop(self) -> None:
        for each in self.processes:
            if each.returncode is None:
                each.terminate()
        await asyncio.gather(*(each.wait() for each in self.processes))


async def _spread(
    state_dir: Path,
    config_file: Path | None,
    plan: Plan,
    processes: int,
    then: Callable[[], Awaitable[None]],
) -> None:
    children = _Children()
    over = asyncio.Event()

    async def watch(child: asyncio.subprocess.Process) -> None:
        await child.wait()
        over.set()  # one that ends takes the others with it

    async def start() -> None:
        sizes = [plan.hosts // processes + (each < plan.hosts % processes) for each in range(processes)]
        first = plan.first
        for number, size in enumerate(sizes):
            if not size:
                continue
            command = _command(state_dir / f"part-{number}", config_file, plan, first, size)
            children.processes.append(
                await asyncio.create_subprocess_exec(
                    *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
                )
            )
            first += size
        for child in children.processes:
            assert child.stdout is not None
            if not (await child.stdout.readline()).startswith(b"ready"):
                raise click.ClickException("A part of the simulation did not start; see its log.")
        for child in children.processes:
            tasks.append(asyncio.create_task(watch(child)))
        await then()

    tasks: list[asyncio.Task[None]] = []
    await until_told(children, start, f"ready: {plan.hosts} hosts in {processes} processes", over)
    for task in tasks:
        task.cancel()


def _command(state_dir: Path, config_file: Path | None, plan: Plan, first: int, size: int) -> list[str]:
    command = [sys.executable, "-m", "kilonova.cli", "simulate", "--part", "--hosts", str(size)]
    command += [
        "--first",
        str(first),
        "--prefix",
        plan.prefix,
        "--delay",
        str(plan.delay),
        "--seed",
        str(plan.seed),
    ]
    for verb, chance in plan.faults.items():
        command += ["--fault", f"{verb}:{chance}"]
    command += ["--state-dir", str(state_dir)]
    return command + (["--config-file", str(config_file)] if config_file else [])
