"""``kilonova host drain``: move every server away from a host, and tell how it goes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kilonova.cli.demo_client import Answer, DemoClient
from kilonova.cli.drain_plan import COLD, EVACUATE, LIVE, Move, Plan, Server, read_policy
from kilonova.cli.drain_run import Drain, Options, Outcome, Refused, Silent
from kilonova.clock import SystemClock

ADMIN = "kilonova-admin"
REASON = "drained: its servers are being moved away"
PAGE = 500
VERSION = "2.94"  # the last one in which an evacuated server runs on


class RestApi:
    """The API of the cloud, as its administrator.  Implements drain_run.Api."""

    def __init__(self, clouds_yaml: Path) -> None:
        self._clouds_yaml = clouds_yaml
        self._client: DemoClient | None = None

    def service(self, host: str) -> dict[str, Any]:
        """The compute service of the host.  Raises ClickException for a host that there is not."""
        found = self._call("GET", f"/os-services?binary=nova-compute&host={quote(host)}")["services"]
        if not found:
            raise click.ClickException(f"There is no compute host '{host}'.")
        service: dict[str, Any] = found[0]
        return service

    def disable(self, host: str) -> bool:
        """Let no new servers go there; whether that was not so before."""
        service = self.service(host)
        if service["status"] == "disabled":
            return False
        body = {"status": "disabled", "disabled_reason": REASON}
        self._call("PUT", f"/os-services/{service['id']}", body)
        return True

    def host_is_up(self, host: str) -> bool:
        return bool(self.service(host)["state"] == "up")

    def servers(self, host: str) -> list[Server]:
        found: list[Server] = []
        while True:
            marker = f"&marker={found[-1].uuid}" if found else ""
            query = f"all_tenants=1&host={quote(host)}&sort_key=created_at&limit={PAGE}{marker}"
            page = self._call("GET", f"/servers/detail?{query}")["servers"]
            found += [Server.of_api(each) for each in page]
            if len(page) < PAGE:
                return found

    def moves(self, host: str) -> list[Move]:
        found = self._call("GET", f"/os-migrations?host={quote(host)}&limit={PAGE}")["migrations"]
        return [
            Move(
                uuid=each["uuid"],
                instance_uuid=each["instance_uuid"],
                kind=each["migration_type"],
                status=each["status"],
                source=each["source_compute"],
                destination=each["dest_compute"],
            )
            for each in found
        ]

    def move(self, server: Server, way: str, target: str | None) -> str:
        bodies: dict[str, dict[str, Any]] = {
            LIVE: {"os-migrateLive": {"host": target, "block_migration": "auto"}},
            COLD: {"migrate": None if target is None else {"host": target}},
            EVACUATE: {"evacuate": {} if target is None else {"host": target}},
        }
        answer = self._call("POST", f"/servers/{server.uuid}/action", bodies[way])
        return answer.headers.get("x-openstack-request-id", "")

    def confirm(self, uuid: str) -> None:
        self._call("POST", f"/servers/{uuid}/action", {"confirmResize": None})

    def why(self, uuid: str, request_id: str) -> str:
        try:
            action = self._call("GET", f"/servers/{uuid}/os-instance-actions/{request_id}")["instanceAction"]
        except Refused:
            return ""
        events = [each for each in action.get("events", []) if each.get("result") == "Error"]
        return str(events[-1].get("details") or "") if events else ""

    def _call(self, method: str, path: str, body: Any = None) -> Answer:
        """Raises Silent, Refused."""
        for again in (True, False):
            try:
                if self._client is None:
                    self._client = DemoClient(self._clouds_yaml, ADMIN)
                return self._client.call("compute", method, path, body, VERSION)
            except click.ClickException as error:
                if isinstance(error.__cause__, OSError):
                    raise Silent(error.message) from error
                status, _, said = error.message.partition(": ")[2].partition(" ")
                if status == "401" and again:  # a token does not last for ever
                    self._client = None
                    continue
                if status in ("500", "502", "503", "504"):
                    raise Silent(error.message) from error
                raise Refused(_words(said) or error.message) from error
        raise AssertionError("a loop of two rounds has ended")


def _words(said: str) -> str:
    """What an answer of the API says in plain words."""
    try:
        answer = json.loads(said)
        return str(next(iter(answer.values()))["message"])
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
        return said


class Screen:
    """Implements drain_run.Told."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("moved"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=console, transient=True)
        self._task = self.progress.add_task("", total=None, text="")
        self._most = 0
        self._silent = False

    def began(self, server: Server, way: str) -> None:
        self._console.print(f"[dim]…[/] {escape(server.name)} ({server.uuid}): {way}")

    def went(self, name: str, uuid: str, way: str, seconds: float) -> None:
        self._console.print(f"[green]✓[/] {escape(name)} ({uuid}): {way}, {seconds:.1f} s")

    def failed(self, server: Server, way: str, why: str) -> None:
        self._console.print(f"[red]✗[/] {escape(server.name)} ({server.uuid}): {way}: {escape(why)}")

    def silent(self, why: str) -> None:
        if not self._silent:
            self._console.print(f"[yellow]![/] the cloud does not answer, and is asked again: {escape(why)}")
        self._silent = True

    def now(self, left: int, under_way: int) -> None:
        self._silent = False
        self._most = max(self._most, left)
        self.progress.update(
            self._task, total=self._most, completed=self._most - left, text=f"{under_way} under way"
        )


def _policy(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    try:
        return read_policy(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("host")
@click.option("--dry-run", is_flag=True, help="Only tell what would be done with which server.")
@click.option(
    "--policy",
    default="live,cold",
    show_default=True,
    callback=_policy,
    help="The ways to move a server, in their order: live, cold; evacuate, for a host that is down. "
    "A server's metadata 'drain_policy' and its flavor's 'drain:policy' go before it; 'stay' there keeps it.",
)
@click.option("--deadline", type=click.FloatRange(min=0), help="Seconds after which nothing more is begun.")
@click.option("--target", help="The host to go to; else the scheduler chooses.")
@click.option("--at-once", type=click.IntRange(1, 100), default=4, show_default=True, help="Moves at a time.")
@click.option(
    "--clouds-yaml",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=Path("/var/lib/kilonova/clouds.yaml"),
    show_default=True,
    help="Where the cloud is, and the administrator's password.",
)
def drain(
    host: str,
    dry_run: bool,
    policy: tuple[str, ...],
    deadline: float | None,
    target: str | None,
    at_once: int,
    clouds_yaml: Path,
) -> None:
    """Move every server away from HOST, and keep new ones from going there.

    It may be broken off and begun again.  The exit status is 0 only when the host is empty.
    """
    console, api = Console(), RestApi(clouds_yaml)
    options = Options(host=host, policy=policy, target=target, at_once=at_once, deadline=deadline)
    screen = Screen(console)
    draining = Drain(api, options, screen, SystemClock())
    try:
        api.service(host)
        if target is not None and (target == host or not api.host_is_up(target)):
            raise click.ClickException(f"The target '{target}' is the host itself, or down.")
        if dry_run:
            _show(console, host, draining.plans())
            return
        if api.disable(host):
            console.print(f"[green]✓[/] no new servers go to {escape(host)}")
        with screen.progress:
            outcome = asyncio.run(draining.run())
    except (Refused, Silent) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        raise click.ClickException(
            "Broken off: what was begun goes on, and the command may be given again."
        ) from None
    _tell(console, host, outcome)


def _show(console: Console, host: str, plans: list[tuple[Server, Plan]]) -> None:
    shown = Table("server", "name", "state", "way", "why not")
    for server, plan in plans:
        state = server.vm_state if server.task_state is None else f"{server.vm_state}, {server.task_state}"
        shown.add_row(server.uuid, escape(server.name), state, plan.way or "-", escape(plan.why))
    console.print(shown if plans else f"There are no servers on {escape(host)}.")
    if any(plan.way is None and not plan.waits for _, plan in plans):
        raise SystemExit(1)


def _tell(console: Console, host: str, outcome: Outcome) -> None:
    if outcome.empty:
        console.print(f"[green]✓[/] {escape(host)} is empty.")
        return
    if outcome.late:
        console.print("The time is up.")
    for name, why in outcome.left.items():
        console.print(f"[yellow]![/] {escape(name)} is still there: {escape(why)}")
    for each in outcome.waiting:
        console.print(f"[yellow]![/] {escape(each)}")
    raise SystemExit(1)
