"""One decision: filter, weigh, and give the hosts in the order in which to try them."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from kilonova.scheduler.filters.given import with_limits
from kilonova.scheduler.filters.registry import FORCED, filters_of
from kilonova.scheduler.options import Options
from kilonova.scheduler.pipeline import Pipeline, Verdict
from kilonova.scheduler.question import Question
from kilonova.scheduler.request import Candidate, Explanation
from kilonova.scheduler.weighing import Weighing, in_order, weighers_of


class Decider:
    """Raises Failed for names of filters and weighers that are not known."""

    def __init__(self, options: Options, chance: random.Random) -> None:
        self._options = options
        self._chance = chance
        self._pipeline = Pipeline(filters_of(options))
        self._forced = Pipeline(FORCED)
        self._weighing = Weighing(weighers_of(options))

    def pipeline_for(self, question: Question) -> Pipeline:
        return self._forced if question.request.forced else self._pipeline

    def decide(self, question: Question) -> tuple[Verdict, Iterator[Candidate]]:
        """Who passed, and these as candidates, the best first.  Hosts that go meanwhile are left out."""
        verdict = self.pipeline_for(question).run(question)
        rows = np.flatnonzero(verdict.mask)
        order = in_order(self._weighing.weigh(question, rows), rows, self._options, self._chance)
        return verdict, _candidates(question, order)

    def explain(self, question: Question) -> Explanation:
        pipeline = self.pipeline_for(question)
        verdict = pipeline.run(question)
        rows = np.flatnonzero(verdict.mask)
        return Explanation(
            hosts=len(question.columns),
            ranked=self._weighing.ranked(question, rows),
            counts=verdict.counts,
            reasons=pipeline.reasons(question, verdict),
        )


def _candidates(question: Question, order: Iterator[int]) -> Iterator[Candidate]:
    columns = question.columns
    together, special = question.request.wanted.together(), question.request.special
    for row in order:
        host = columns.records[row]
        if host is None:
            continue
        here = special if special.nothing else with_limits(special, columns, row)
        several = [{host.compute_id: together}]
        if question.placed is not None:
            several = question.placed.get(host.compute_id, [])
        for allocations in several:
            yield Candidate(
                host=host.host,
                node=host.hypervisor_hostname,
                compute_id=host.compute_id,
                availability_zone=columns.zone_of(row),
                allocations=allocations,
                special=here,
            )
