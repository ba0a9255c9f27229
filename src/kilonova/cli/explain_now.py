"""What the scheduler would decide now: for a server that there is, or for one that is only thought of."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kilonova.clock import Clock, SystemClock
from kilonova.db import flavors, images
from kilonova.db.engine import Database, Tx
from kilonova.model.flavor import Flavor
from kilonova.model.instance import ImageMeta, Instance
from kilonova.operations.placing import request_for_flavor
from kilonova.resources.claims import Claims
from kilonova.scheduler.options import options_of
from kilonova.scheduler.request import Explanation, Ranked
from kilonova.scheduler.select import Scheduler
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.settings import Settings

NOBODY = "00000000-0000-0000-0000-000000000000"  # a server that there will never be


class Thought(msgspec.Struct, frozen=True, kw_only=True):
    """A server to be thought of; ``more`` are fields of the request."""

    flavor: str
    image: str | None
    count: int = 1
    more: dict[str, Any] = {}


class Decision(msgspec.Struct, frozen=True):
    """``hosts``: of each of the servers, in order; fewer than were asked for when no host is left."""

    explanation: Explanation
    hosts: list[str]


async def decide(db: Database, settings: Settings, thought: Thought) -> Decision:
    """Raises ClickException for a flavor or an image that there is not, Invalid where they do not agree."""
    flavor, image = await db.read(lambda tx: (_flavor(tx, thought.flavor), _image(tx, thought.image)))
    more = {"uuid": NOBODY, "project_id": "", **thought.more}
    return await _asked(db, settings, flavor, image, thought.count, more)


async def decide_again(db: Database, settings: Settings, server: Instance) -> Decision:
    """Where that server would go, if it had to be placed now; what it holds itself counts as used."""
    more = {
        "uuid": server.uuid,
        "project_id": server.project_id,
        "hints": server.hints,
        "availability_zone": server.pinned_availability_zone,
    }
    return await _asked(db, settings, server.flavor, server.image, 1, more)


async def _asked(
    db: Database,
    settings: Settings,
    flavor: Flavor,
    image: ImageMeta | None,
    count: int,
    more: Mapping[str, Any],
) -> Decision:
    clock: Clock = SystemClock()
    placement = BuiltinPlacement(db, clock)
    scheduler = Scheduler(db, placement, clock, options_of(settings), chance=random.Random())
    request = request_for_flavor(settings, Claims.of_settings(settings, db, placement), flavor, image, **more)
    explanation = await scheduler.explain(request)
    return Decision(explanation, await scheduler.rehearse(request, count))


def _flavor(tx: Tx, name: str) -> Flavor:
    """By its id, or else by its name."""
    found = flavors.show(tx, name) or next((each for each in flavors.list_all(tx) if each.name == name), None)
    if found is None:
        raise click.ClickException(f"There is no flavor '{name}'.")
    return found


def _image(tx: Tx, name: str | None) -> ImageMeta | None:
    """By its id, or, of a public one, by its name; None: the server boots from a volume."""
    if name is None:
        return None
    found = images.show(tx, name, None) or images.public_by_name(tx, name)
    if found is None:
        raise click.ClickException(f"There is no image '{name}', and no public one of that name.")
    return ImageMeta(
        id=found.id, name=found.name, disk_format=found.disk_format or "raw", properties=found.properties
    )


def hints_of(words: tuple[str, ...]) -> dict[str, object]:
    """Of ``key=value`` each; a key that comes again makes a list.  Raises ClickException."""
    found: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise click.ClickException(f"The hint '{word}' is not of the form key=value.")
        old = found.get(key)
        found[key] = value if old is None else [*(old if isinstance(old, list) else [old]), value]
    return found


def show(console: Console, decision: Decision, asked_for: int) -> None:
    """Print it, every host of it."""
    explanation, hosts = decision.explanation, decision.hosts
    _show_counts(console, explanation)
    if hosts and asked_for == 1:
        console.print(f"It would go to [bold]{escape(hosts[0])}[/].")
    elif hosts:
        console.print(f"{len(hosts)} of {asked_for} would be placed:")
        for name in dict.fromkeys(hosts):
            console.print(f"  {hosts.count(name)} on {escape(name)}")
    else:
        console.print("No host would take it.")
    if explanation.hosts:
        shown = Table("host", "weight", "verdict")
        for each in explanation.ranked:
            shown.add_row(escape(each.host), f"{each.weight:.4g}", escape(_weights(each)))
        for host, reason in explanation.reasons.items():
            shown.add_row(escape(host), "", escape(reason))
        console.print(shown)


def _show_counts(console: Console, explanation: Explanation) -> None:
    console.print(f"{explanation.hosts} hosts were looked at.")
    for name, count in explanation.counts.items():
        console.print(f"  {name} refuses {count}.")


def _weights(ranked: Ranked) -> str:
    """What moved it up or down."""
    told = [f"{name} {one.share:+.4g} ({one.raw:.6g})" for name, one in ranked.weights.items() if one.share]
    return "will do: " + ", ".join(told) if told else "will do"
