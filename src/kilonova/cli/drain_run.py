"""Emptying a host: what the command does, over whatever stands for the API, the clock and the screen.

All that it knows is in the cloud: one that is broken off goes on when it is begun again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from kilonova.cli.drain_plan import UNDER_WAY, Move, Plan, Server, plan_for
from kilonova.clock import SECOND, Clock

TRIES = 2  # of one way, for one server
PAUSE = 1.0  # seconds between looks


class Refused(Exception):
    """The cloud does not do it, for the reason given."""


class Silent(Exception):
    """The cloud does not answer for the moment."""


class Api(Protocol):
    """What of the API is used.  Every call raises Silent, those that change something also Refused."""

    def host_is_up(self, host: str) -> bool: ...
    def servers(self, host: str) -> list[Server]: ...
    def moves(self, host: str) -> list[Move]:
        """Those from and to it, the newest first."""

    def move(self, server: Server, way: str, target: str | None) -> str:
        """Ask for it; the id of the request."""

    def confirm(self, uuid: str) -> None: ...
    def why(self, uuid: str, request_id: str) -> str:
        """What the log of that request says of its failure; empty if nothing."""


class Told(Protocol):
    """What the screen hears."""

    def began(self, server: Server, way: str) -> None: ...
    def went(self, name: str, uuid: str, way: str, seconds: float) -> None: ...
    def failed(self, server: Server, way: str, why: str) -> None: ...
    def now(self, left: int, under_way: int) -> None: ...
    def silent(self, why: str) -> None: ...


class Options(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    policy: Sequence[str]
    target: str | None = None
    at_once: int = 4
    deadline: float | None = None  # seconds from the beginning


@dataclass
class _Begun:
    server: Server
    way: str
    request_id: str
    at: int


@dataclass
class _Kept:
    """A move that keeps something on the host; ``ends``: by itself, nobody need decide."""

    what: str
    ends: bool


@dataclass
class Outcome:
    """``left``: server -> why it is there still; ``waiting``: moves that others have to end."""

    left: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    late: bool = False

    @property
    def empty(self) -> bool:
        return not self.left and not self.waiting


class Drain:
    def __init__(self, api: Api, options: Options, told: Told, clock: Clock) -> None:
        self._api = api
        self._options = options
        self._told = told
        self._clock = clock
        self._begun: dict[str, _Begun] = {}
        self._tries: dict[tuple[str, str], int] = {}
        self._confirmed: set[str] = set()

    def plans(self) -> list[tuple[Server, Plan]]:
        """What would be done, as it is now."""
        options, up = self._options, self._api.host_is_up(self._options.host)
        return [
            (server, plan_for(server, options.policy, host_is_up=up))
            for server in self._api.servers(options.host)
        ]

    async def run(self) -> Outcome:
        """Until the host is empty, nothing more can be done, or the time is up."""
        limit = self._options.deadline
        until = None if limit is None else self._clock.now() + int(limit * SECOND)
        outcome = Outcome()
        while True:
            over = until is not None and self._clock.now() >= until
            try:
                outcome, goes_on = self._look(begin=not over)
            except Silent as error:
                self._told.silent(str(error))
                goes_on = True
            if over:
                outcome.late = not outcome.empty
                return outcome
            if not goes_on:
                return outcome
            await self._clock.sleep(PAUSE)

    def _look(self, *, begin: bool) -> tuple[Outcome, bool]:
        """One look, with all that can be done at once; whether there is something to wait for."""
        options, api = self._options, self._api
        up = api.host_is_up(options.host)
        servers = {each.uuid: each for each in api.servers(options.host)}
        moves = api.moves(options.host)
        self._settle(servers, moves)
        kept = self._confirm(moves)
        outcome = Outcome(waiting=[each.what for each in kept])
        plans = {
            uuid: plan_for(server, options.policy, host_is_up=up, failed=self._failed(uuid))
            for uuid, server in servers.items()
        }
        under_way = sum(plan.waits for plan in plans.values())
        under_way += len(self._begun.keys() - servers.keys())  # gone from here, and not yet confirmed
        goes_on = bool(under_way)
        for uuid, plan in plans.items():
            if plan.way is None:
                outcome.left[servers[uuid].name] = plan.why
                continue
            outcome.left[servers[uuid].name] = "there was no time"
            goes_on = True
            if begin and under_way < options.at_once:
                under_way += self._begin(servers[uuid], plan.way)
        self._told.now(len(servers), under_way)
        return outcome, goes_on or any(each.ends for each in kept)

    def _failed(self, uuid: str) -> set[str]:
        return {way for (of, way), count in self._tries.items() if of == uuid and count >= TRIES}

    def _begin(self, server: Server, way: str) -> bool:
        try:
            request_id = self._api.move(server, way, self._options.target)
        except Refused as error:
            self._tries[server.uuid, way] = TRIES  # it would be refused again
            self._told.failed(server, way, str(error))
            return False
        self._begun[server.uuid] = _Begun(server, way, request_id, self._clock.now())
        self._told.began(server, way)
        return True

    def _settle(self, servers: dict[str, Server], moves: Sequence[Move]) -> None:
        """What has become of the moves that were begun here."""
        busy = {move.instance_uuid for move in moves if move.status in UNDER_WAY}
        for uuid, begun in list(self._begun.items()):
            server = servers.get(uuid)
            if uuid in busy or (server is not None and server.task_state is not None):
                continue
            del self._begun[uuid]
            if server is None:
                self._told.went(begun.server.name, uuid, begun.way, (self._clock.now() - begun.at) / SECOND)
                continue
            self._tries[uuid, begun.way] = self._tries.get((uuid, begun.way), 0) + 1
            self._told.failed(server, begun.way, self._api.why(uuid, begun.request_id) or "it is still here")

    def _confirm(self, moves: Sequence[Move]) -> list[_Kept]:
        """Confirm what was migrated cold from here; which moves still keep something here."""
        kept = []
        for move in moves:
            here = move.source == self._options.host
            if move.status not in UNDER_WAY or (move.status == "finished" and not here):
                continue  # over, or come here: then it is a server of this host
            if move.status == "finished" and move.kind == "resize":
                kept.append(
                    _Kept(f"the resize of {move.instance_uuid} is to be confirmed or reverted", False)
                )
                continue
            if move.status == "finished":
                self._confirm_one(move)
            kept.append(_Kept(f"the {move.kind} of {move.instance_uuid} is {move.status}", True))
        return kept

    def _confirm_one(self, move: Move) -> None:
        if move.uuid in self._confirmed:
            return
        with contextlib.suppress(Refused):  # its server is busy: the next look tries again
            self._api.confirm(move.instance_uuid)
            self._confirmed.add(move.uuid)
