"""Choosing a host: decide on a cached view, commit with compare-and-set.

A stale view costs a lost claim and the next candidate, never a host that is over-committed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kilonova.clock import SECOND, Clock
from kilonova.db import hosts
from kilonova.db.engine import Database
from kilonova.errors import NotFound, NoValidHost
from kilonova.model.host import Host
from kilonova.scheduler.filters import FILTERS, FORCED
from kilonova.scheduler.request import HostState, Selection, ServerRequest
from kilonova.services.placement.port import Placement, ProviderSummary

FRESH = SECOND  # how old the view may be

Claim = Callable[[str], Awaitable[bool]]


class Scheduler:
    """Knows the hosts, and says why not for each of them."""

    def __init__(
        self, db: Database, placement: Placement, clock: Clock, *, service_down_time: int, default_zone: str
    ) -> None:
        self._db = db
        self._placement = placement
        self._clock = clock
        self._down_time = service_down_time
        self._default_zone = default_zone
        self._states: list[HostState] = []
        self._read_at = 0
        self._changes = 0  # how often we were told that the view is out of date

    async def select(self, request: ServerRequest, claim: Claim) -> Selection:
        """The best host that fits and on which ``claim(provider uuid)`` succeeds.

        Raises NoValidHost with the reason for each host.
        """
        reasons: dict[str, str] = {}
        fresh = self._is_stale()  # then the first look is a new one, and a second would say the same
        for refresh in (False, True):
            if refresh and fresh:
                break
            reasons = {}
            candidates = rank(request, await self._view(refresh), reasons)
            for state in candidates:
                if await _claimed(claim, state):
                    return Selection(
                        host=state.host.host,
                        node=state.host.hypervisor_hostname,
                        availability_zone=state.zone,
                        reasons=reasons,
                    )
                reasons[state.host.host] = "another server was faster in taking what was free"
        wanted = request.forced_host or request.forced_node
        if not reasons and wanted:
            reasons = {wanted: "there is no such host"}
        raise NoValidHost(
            "No valid host was found." if reasons else "No valid host was found: there is none at all.",
            reasons,
        )

    async def explain(self, request: ServerRequest) -> dict[str, str]:
        """Host -> the reason why not; empty text for a host that would do."""
        reasons: dict[str, str] = {}
        good = rank(request, await self._view(True), reasons)
        return {**{state.host.host: "" for state in good}, **reasons}

    async def details(self, host: str) -> dict[str, str]:
        """What the agent of a host said of itself that the network service wants to know."""
        for state in await self._view(False):
            if state.host.host == host:
                return state.host.details
        return {}

    def forget(self) -> None:
        """Something about the hosts has changed: read again before the next decision."""
        self._read_at = 0
        self._changes += 1

    async def zones(self) -> dict[str, list[HostState]]:
        """The hosts by availability zone."""
        result: dict[str, list[HostState]] = {}
        for state in await self._view(False):
            result.setdefault(state.zone, []).append(state)
        return result

    def _is_stale(self) -> bool:
        return abs(self._clock.now() - self._read_at) >= FRESH  # abs: clocks are set back, too

    async def _view(self, refresh: bool) -> list[HostState]:
        if refresh or self._is_stale():
            now, changes = self._clock.now(), self._changes
            found = await self._db.read(hosts.list_all)
            providers = {provider.uuid: provider for provider in await self._placement.providers()}
            self._states = [
                HostState(
                    host=host,
                    provider=providers.get(host.compute_id) or _unknown(host),
                    up=hosts.is_up(host, now, self._down_time),
                    zone=host.availability_zone or self._default_zone,
                )
                for host in found
            ]
            self._read_at = now if changes == self._changes else 0
        return self._states


def _unknown(host: Host) -> ProviderSummary:
    """For a host that placement does not know: nothing can be booked there."""
    return ProviderSummary(
        uuid=host.compute_id, name=host.hypervisor_hostname, generation=0, inventories={}, used={}
    )


async def _claimed(claim: Claim, state: HostState) -> bool:
    """A provider that has gone since we looked is one more candidate that is lost."""
    try:
        return await claim(state.provider.uuid)
    except NotFound:
        return False


def rank(request: ServerRequest, states: list[HostState], reasons: dict[str, str]) -> list[HostState]:
    """The hosts that fit, the one with the most free memory first (Nova's RAMWeigher); the others'
    reasons go into ``reasons``."""
    forced = request.forced_host or request.forced_node
    if forced:
        states = [
            state
            for state in states
            if request.forced_host in (None, "", state.host.host)
            and request.forced_node in (None, "", state.host.hypervisor_hostname)
        ]
    good = []
    for state in states:
        for each in FORCED if forced else FILTERS:
            reason = each(request, state)
            if reason is not None:
                reasons[state.host.host] = reason
                break
        else:
            good.append(state)
    good.sort(key=lambda state: -state.free("MEMORY_MB"))
    return good
