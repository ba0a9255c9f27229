"""The kinds of moves of the matrix: what has to be before, how each is begun, and the moments in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kilonova.journal.model import Kind as StepKind
from kilonova.operations.registry import OPERATIONS
from tests.real.moves.faults import FAULTS, Fault
from tests.real.moves.stage import Stage

ON_THE_WAY = "on the way"
OFF_ALREADY = ("source", "way to the source", "agent of the source", "libvirtd of the source", "link")


@dataclass(frozen=True)
class Kind:
    """``operation`` is the plan whose steps are the moments.  ``travels``: after which step, and how it is
    told that, something is on its way between the hosts."""

    operation: str
    prepare: Callable[[Stage], object]
    begin: Callable[[Stage], object]
    travels: str | None = None
    is_sent: Callable[[Stage], bool] = lambda stage: False
    without: tuple[str, ...] = ()  # victims

    @property
    def moments(self) -> list[str]:
        """Names of steps, each before its work, and `ON_THE_WAY`."""
        names = [step.name for step in OPERATIONS[self.operation].steps]
        if self.travels is not None:
            names.insert(names.index(self.travels) + 1, ON_THE_WAY)
        return names

    def number(self, moment: str) -> int:
        """Of the step in the plan."""
        step = self.travels if moment == ON_THE_WAY else moment
        return [each.name for each in OPERATIONS[self.operation].steps].index(str(step))

    def phase(self, moment: str) -> str:
        """Before there is no way back, while something is sent, or after."""
        kinds = [step.kind for step in OPERATIONS[self.operation].steps]
        last = kinds.index(StepKind.PIVOT) if StepKind.PIVOT in kinds else len(kinds)
        if moment == ON_THE_WAY:
            return moment
        after = self.number(moment) > last or kinds[0] is StepKind.RETRIABLE
        return "after" if after else "before"

    @property
    def faults(self) -> list[Fault]:
        return [fault for fault in FAULTS.values() if not fault.victim.startswith(self.without or ("-",))]


KINDS: dict[str, Kind] = {
    kind.operation: kind
    for kind in [
        Kind("live_migrate", Stage.running, Stage.live_migrate, "migrate", Stage.memory_is_sent),
        Kind("resize", Stage.ready, Stage.migrate, "copy", Stage.files_are_sent),
        Kind("revert_resize", Stage.migrated, Stage.revert),
        Kind("confirm_resize", Stage.migrated, Stage.confirm),
        Kind("evacuate", Stage.host_is_down, Stage.evacuate, without=OFF_ALREADY),
    ]
}


@dataclass(frozen=True)
class Point:
    kind: str
    moment: str
    fault: str

    def __str__(self) -> str:
        return f"{self.kind}-{self.moment}-{self.fault}"


POINTS = [
    Point(name, moment, fault.name)
    for name, kind in KINDS.items()
    for moment in kind.moments
    for fault in kind.faults
]
