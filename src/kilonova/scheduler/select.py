"""Choosing a host: decide on a cached view, commit with compare-and-set.

A stale view costs a lost claim and the next candidate, never a host that is over-committed.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from kilonova.clock import SECOND, Clock
from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.db.engine import Database
from kilonova.errors import NotFound, NoValidHost, TryAgain
from kilonova.scheduler import trees
from kilonova.scheduler.columns import Columns
from kilonova.scheduler.decision import Decider
from kilonova.scheduler.holdings import FRESH, IDLE, Holdings
from kilonova.scheduler.options import Options
from kilonova.scheduler.question import Question
from kilonova.scheduler.request import Candidate, Explanation, Selection, ServerRequest
from kilonova.scheduler.surroundings import surrounded
from kilonova.scheduler.view import HostView
from kilonova.services.placement.port import Placement

TOLD = 200  # hosts whose reasons are kept with a server that no host would take
NOTED = 50  # and with one that was placed

Claim = Callable[[Candidate], Awaitable[str | None]]
"""Books a server there: None when it did, or the reason why not."""

GONE = "its resource provider has gone"


class Scheduler:
    """Knows the hosts, and says why not for each of them.

    Raises Failed for options that name filters or weighers that are not known.
    """

    def __init__(
        self,
        db: Database,
        placement: Placement,
        clock: Clock,
        options: Options,
        *,
        chance: random.Random | None = None,
        top: Database | None = None,
    ) -> None:
        """``db`` is that of the cell; ``top`` that of placement, aggregates and groups, if it is another."""
        self._db = db
        self._top = db if top is None else top
        self._placement = placement
        self._clock = clock
        self._options = options
        self._decider = Decider(options, chance or random.Random())
        self.view = HostView(db, clock, options, top)
        self.holdings = Holdings(self._top, clock)
        self._hearing_since = 0

    def interrupted(self) -> None:
        """Until now signs of life may have been lost on our side: who is silent need not be dead."""
        self._hearing_since = self._clock.now()

    @property
    def was_interrupted(self) -> bool:
        """Whether who is silent may be so because of an outage on our side."""
        return self._clock.now() - self._hearing_since <= self._options.service_down_time * SECOND

    def _may_have_missed(self, columns: Columns) -> bool:
        """Whether some host is taken for dead that we could not have heard for long enough."""
        if not self.was_interrupted:
            return False
        now = self._clock.now()
        alive = columns.alive(now, self._options.service_down_time)
        return not all(alive[row] for row in columns.row_of.values())

    async def select(self, request: ServerRequest, claim: Claim) -> Selection:
        """The best host that fits and that ``claim`` could book.

        Raises NoValidHost with the reason for each host (of very many: for some); TryAgain while hosts may be
        silent because of an outage on our side.
        """
        lost: dict[str, str] = {}
        fresh = self.view.is_stale  # then the first look is a new one, and a second would say the same
        question = await self._question(request, False)
        selection = await self._try_all(question, claim, lost)
        if selection is None and not fresh:
            lost = {}
            question = await self._question(request, True)
            selection = await self._try_all(question, claim, lost)
        if selection is None and self._may_have_missed(question.columns):
            raise TryAgain("No host was found among those that have been heard since the last outage.")
        if selection is None:
            raise self._nobody(question, lost)
        return selection

    async def _try_all(self, question: Question, claim: Claim, lost: dict[str, str]) -> Selection | None:
        """The first candidate that can be booked; the others' hosts go into ``lost``, with the reason.

        Where a server group or a changed view may say something else now, it is decided anew.
        """
        while True:
            version, again = question.columns.version, False
            verdict, candidates = self._decider.decide(question)
            reasons = self._decider.pipeline_for(question).reasons(question, verdict, NOTED)
            for candidate in candidates:
                reason = await self._claimed(claim, candidate)
                if reason is None:
                    return _selection(candidate, verdict.counts, {**reasons, **lost})
                lost[candidate.host] = reason
                again = question.request.group is not None or question.columns.version != version
                if again:
                    break
            if not again:
                return None
            ignored = {**question.request.ignored, **lost}
            question = await self._question(replace(question.request, ignored=ignored), False)

    async def _claimed(self, claim: Claim, candidate: Candidate) -> str | None:
        """A provider that has gone since we looked is one more candidate that is lost."""
        own = candidate.allocations.get(candidate.compute_id, {})
        self.view.count(candidate.compute_id, own)
        reason: str | None = "it was given up"
        try:
            reason = await claim(candidate)
        except NotFound:
            reason = GONE
        finally:
            if not candidate.special.nothing:
                self.holdings.forget()
            if reason is None:
                self.view.booked(candidate.compute_id)
            else:
                self.view.lost(candidate.compute_id, own)
        return reason

    def _nobody(self, question: Question, lost: dict[str, str]) -> NoValidHost:
        request, columns = question.request, question.columns
        ignored = {name: why for name, why in request.ignored.items() if name not in lost}
        asked = dataclasses.replace(question, request=replace(request, ignored=ignored))
        pipeline = self._decider.pipeline_for(asked)
        verdict = pipeline.run(asked)
        reasons = {**pipeline.reasons(asked, verdict, TOLD), **lost}
        wanted = request.forced_host or request.forced_node
        if not reasons and wanted:
            reasons = {wanted: "there is no such host"}
        told = "No valid host was found." if reasons else "No valid host was found: there is none at all."
        if len(columns) > len(reasons) and len(columns) > TOLD:
            removed = ", ".join(f"{name} {count}" for name, count in verdict.counts.items())
            told = f"No valid host was found: {len(columns)} hosts were refused by {removed}."
        return NoValidHost(told, reasons, verdict.counts)

    async def cell_for(self, request: ServerRequest) -> str | None:
        """The cell (uuid) of the host where it would go; None: nowhere.  Books nothing."""
        question = await self._question(request, False)
        _, candidates = self._decider.decide(question)
        best = next(candidates, None)
        if best is None:
            return None
        columns = question.columns
        return columns.record(columns.row_of[best.host]).cell_uuid or FIRST_CELL

    async def explain(self, request: ServerRequest) -> Explanation:
        """Where it would go and why not elsewhere; books nothing."""
        return self._decider.explain(await self._question(request, True))

    async def rehearse(self, request: ServerRequest, number: int) -> list[str]:
        """The hosts of so many servers like it, made one after the other; fewer when no host is left.

        Books nothing, but counts in the view: for a scheduler that nobody else uses.
        """
        question, found = await self._question(request, False), list[str]()
        while len(found) < number:
            _, candidates = self._decider.decide(question)
            best = next(candidates, None)
            if best is None:
                break
            found.append(best.host)
            self.view.count(best.compute_id, best.allocations.get(best.compute_id, {}))
            group = question.request.group
            if group is not None:
                hosts = {**group.hosts, best.compute_id: group.hosts.get(best.compute_id, 0) + 1}
                more = replace(question.request, group=replace(group, hosts=hosts))
                question = dataclasses.replace(question, request=more)
        return found

    async def _question(self, request: ServerRequest, anew: bool) -> Question:
        columns = await self.view.current(anew=anew)
        if request.hints:
            request = await surrounded(request, self._db, self._top)
        placed = None
        if trees.needs_engine(request.wanted, self.view.elsewhere):
            wanted = trees.asked(request.wanted, self._options.max_placement_results)
            placed = await self._placement.candidates(wanted)
        holdings = None if request.special.nothing else self.holdings
        age = IDLE if holdings is None else FRESH
        await self.holdings.look(columns, anew=anew and holdings is not None, age=age)
        return Question(request, columns, self._options, self._clock.now(), placed, holdings)

    # ---- what others ask of the view ----

    async def details(self, host: str) -> dict[str, str]:
        """What the agent of a host said of itself that the network service wants to know."""
        columns = await self.view.current()
        row = columns.row_of.get(host)
        return {} if row is None else columns.record(row).details

    async def zone(self, host: str) -> str | None:
        """The availability zone of a host; None if it is unknown."""
        columns = await self.view.current()
        row = columns.row_of.get(host)
        return None if row is None else columns.zone_of(row)

    async def zone_is_open(self, zone: str) -> bool:
        """Whether some host of the zone is up and takes servers."""
        columns = await self.view.current()
        code = columns.zones.get(zone)
        if code is None:
            return False
        alive = columns.alive(self._clock.now(), self._options.service_down_time)
        good = columns.present & alive & ~columns.disabled & ~columns.forced_down & (columns.zone == code)
        return bool(good.any())

    async def knows(self, host: str | None, node: str | None) -> tuple[bool, bool]:
        """Whether there is such a host, and whether there is such a node; None: no matter."""
        columns = await self.view.current()
        return host is None or host in columns.row_of, node is None or _has_node(columns, node)

    def failed_builds(self, host: str) -> int:
        """How many builds in a row have failed there, as far as the last look told."""
        columns = self.view.columns
        row = columns.row_of.get(host)
        return 0 if row is None else int(columns.failed_builds[row])

    def forget(self) -> None:
        """Something about the hosts has changed: look again before the next decision."""
        self.view.forget()


def _selection(candidate: Candidate, removed: dict[str, int], reasons: dict[str, str]) -> Selection:
    return Selection(
        host=candidate.host,
        node=candidate.node,
        compute_id=candidate.compute_id,
        availability_zone=candidate.availability_zone,
        allocations=candidate.allocations,
        removed=removed,
        reasons=reasons,
    )


def _has_node(columns: Columns, node: str) -> bool:
    return any(columns.record(row).hypervisor_hostname == node for row in columns.row_of.values())
