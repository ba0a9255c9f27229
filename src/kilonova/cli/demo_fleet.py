"""``kilonova demo-fleet``: a cloud of many hosts, parts of which are killed while it boots servers."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kilonova.errors import KilonovaError
from kilonova.testing.fleet.audit import complaints, guests
from kilonova.testing.fleet.daemon import DidNotStart
from kilonova.testing.fleet.fleet import Fleet
from kilonova.testing.fleet.load import Load

console = Console()

OUTAGE = 4.0  # seconds that the bus and a controller are away


@click.command("demo-fleet")
@click.option("--hosts", type=click.IntRange(1, 5000), default=50, show_default=True)
@click.option("--servers", type=click.IntRange(4, 20_000), default=200, show_default=True)
@click.option("--keep", is_flag=True, help="Keep the scratch directory with all logs.")
def demo_fleet(hosts: int, servers: int, keep: bool) -> None:
    """Boot servers on simulated hosts while a controller and the bus are killed; tell what was lost."""
    directory = Path(tempfile.mkdtemp(prefix="kilonova-fleet-"))
    try:
        lost = asyncio.run(_demo(directory, hosts, servers))
    except (DidNotStart, KilonovaError, TimeoutError) as error:
        keep = True
        raise click.ClickException(f"{error or 'It took too long.'}\nLogs are in {directory}.") from error
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
    if lost:
        raise click.ClickException(f"{lost} things are not as they should be.")


def _said(text: str) -> None:
    console.print(f"[green]✓[/] {escape(text)}")


async def _demo(directory: Path, hosts: int, servers: int) -> int:
    """How many complaints there are in the end."""
    fleet = Fleet(directory)
    try:
        with console.status("PostgreSQL, NATS, two controllers") as status:
            await fleet.up(lambda text: status.update(f"starting: {text}"))
        _said("PostgreSQL, NATS and two controllers run")
        with console.status(f"starting {hosts} hosts"):
            await fleet.simulate(hosts)
        _said(f"{hosts} hosts have reported")
        load = Load(fleet, await fleet.image())
        await _boot(fleet, load, servers)
        return await _judged(fleet, load, servers)
    finally:
        with console.status("ending all processes"):
            await fleet.down()


async def _boot(fleet: Fleet, load: Load, servers: int) -> None:
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        accepted = bars.add_task("servers asked for", total=servers)
        active = bars.add_task("servers ACTIVE", total=servers)
        names = [f"server-{number}" for number in range(servers)]

        enough = asyncio.Event()

        def count(number: int) -> None:
            bars.update(accepted, completed=number)
            if number >= servers // 4:
                enough.set()

        booting = asyncio.create_task(load.boot(names, progress=count))
        await enough.wait()
        await fleet.controllers[0].kill()
        await fleet.nats.kill()
        bars.console.print("[red]✗[/] killed (SIGKILL): a controller and the bus, in the middle of it")
        await asyncio.sleep(OUTAGE)
        await fleet.nats.up()
        await fleet.controllers[0].start(b"ready")
        bars.console.print("[green]✓[/] both were started again")
        await booting
        await load.settled(progress=lambda number: bars.update(active, completed=number))


async def _judged(fleet: Fleet, load: Load, servers: int) -> int:
    found = await load.servers()
    by_status = Counter(each["status"] for each in found.values())
    shown = ", ".join(f"{number} {status}" for status, number in sorted(by_status.items()))
    console.print(f"  servers: {len(found)} of {servers} ({shown})")
    there = guests(fleet)
    console.print(
        f"  guests: {len(there)}, on {len({host for hosts in there.values() for host in hosts})} hosts"
    )
    wrong = await complaints(fleet)
    wrong += [f"server {name} is not there" for name, uuid in load.accepted.items() if uuid not in found]
    wrong += [f"refused: {status} {answer!r}" for status, answer in load.refused]
    if len(found) != servers:
        wrong.append(f"{servers} servers were asked for, {len(found)} are there")
    for each in wrong:
        console.print(f"[red]✗[/] {escape(each)}")
    if not wrong:
        _said(
            "nothing was lost: every server has its one guest, and claims, ports and quota are what they hold"
        )
    return len(wrong)
