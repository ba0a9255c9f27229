"""What the demo of two hosts says in the end: how long the guest was silent, and what its port was tagged."""

from __future__ import annotations

from typing import Any

import msgspec
from rich.table import Table

from kilonova.cli.demo_cloud import console
from kilonova.l2agent.switch import DEAD_VLAN
from kilonova.testing.lab.station import Silence


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened; ``at`` by the monotonic clock."""

    at: float
    text: str


def show_silence(ping: Silence, stream: Silence, *, broken: bool) -> None:
    table = Table(title="What its neighbour saw of the move")
    for heading in ("", "sent", "lost", "longest silence"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("pings", str(ping.sent), str(ping.lost), f"{ping.milliseconds} ms")
    table.add_row(
        f"lines of the TCP connection, {'[red]broken[/]' if broken else 'still open'}",
        str(stream.sent),
        str(stream.lost),
        f"{stream.milliseconds} ms",
    )
    console.print(table)


def show_tags(by_host: dict[str, list[dict[str, Any]]], port_id: str, marks: list[Moment]) -> None:
    """The guest's port on the switches of both hosts, through time, among what happened."""
    rows = [(mark.at, "", mark.text) for mark in marks]
    for host, lines in by_host.items():
        rows += [(at, host, text) for at, text in tags_of(lines, port_id)]
    table = Table(title="The OVS tag of its port through time")
    table.add_column("seconds", justify="right")
    table.add_column("", style="dim")
    hosts = list(by_host)
    for host in hosts:
        table.add_column(host)
    rows.sort()
    for at, where, text in rows:
        cells = [text if host == where else "" for host in hosts]
        table.add_row(f"{at - rows[0][0]:.3f}", "" if where else text, *cells)
    console.print(table)


def tags_of(lines: list[dict[str, Any]], port_id: str) -> list[tuple[float, str]]:
    """When the port's wiring on one host became what, of the lines of a probe."""
    found: list[tuple[float, str]] = []
    name, last = None, ""
    for line in lines:
        wiring = line.get("wiring")
        if wiring and wiring["port_id"] == port_id:
            name = line["port"]
        if name is None or line.get("port") != name:
            continue
        text = _wiring(wiring)
        if text != last:
            found.append((line["at"], text))
        last = text
    return found


def _wiring(wiring: dict[str, Any] | None) -> str:
    if wiring is None:
        return "[dim]gone[/]"
    if wiring["tag"] == DEAD_VLAN and wiring["trunks"] == [DEAD_VLAN]:
        return f"[yellow]{DEAD_VLAN}[/] isolated"
    return f"[green]{wiring['tag']}[/] its network"
