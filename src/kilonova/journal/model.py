"""The words of the journal: an operation is a list of steps, a run is one walk over them.

Knows no instance verb: what a step does and what its commit changes belongs to the operation.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from kilonova.db.engine import Tx

SIGNAL_FAILED = "failed"
ABANDONED = "Abandoned"  # kind of the error of an operation that an operator gave up


class Kind(enum.Enum):
    """What becomes of a step when a later one fails."""

    COMPENSATABLE = "compensatable"  # undone
    PIVOT = "pivot"  # once it is done there is no way back
    RETRIABLE = "retriable"  # after the pivot: repeated until it succeeds


class ActionRow(msgspec.Struct, kw_only=True):
    """One operation as stored; fields in the order of the table's columns."""

    id: int
    action: str
    instance_uuid: str
    request_id: str
    user_id: str | None
    project_id: str | None
    start_time: int
    updated_at: int | None
    finish_time: int | None
    message: str | None
    operation: str
    plan: tuple[str, ...]
    params: bytes
    outputs: dict[str, Any]
    state: str
    open: bool
    cursor: int
    floor: int
    round: int
    cancel: bool
    error: StoredError | None
    why: str | None = None
    owner: str | None
    epoch: int
    lease_until: int
    wake_at: int
    deadline_at: int


class StoredError(msgspec.Struct, kw_only=True):
    """Why an operation is being unwound; kept with it, so that a restart goes on with the same reason."""

    kind: str  # class name in the error tree
    message: str
    step: str
    code: int = 500
    host: str | None = None
    traceback: str = ""
    reasons: dict[str, str] = {}  # host -> why not, for NoValidHost
    removed: dict[str, int] = {}  # filter -> how many hosts it refused, for NoValidHost
    cancelled: bool = False


@dataclass(slots=True)
class Done:
    """A step is done.  ``output`` is kept for later steps; ``changes`` and ``write`` are made in the
    commit that records the step.

    ``gone``: the operation has left this database with its server.  ``write`` is all that is committed then.
    """

    output: Any = None
    changes: dict[str, Any] = field(default_factory=dict)
    write: Callable[[Tx], None] | None = None
    host: str | None = None
    gone: bool = False


@dataclass(slots=True)
class Wait:
    """A step is done when all of ``signals`` (name, tag) have been delivered; until then nobody runs.

    After ``timeout`` seconds ``late`` decides: an error to raise, or None to go on without them.  Each
    ``every`` seconds the step is begun again, to see whether there is anything to wait for.
    """

    signals: frozenset[tuple[str, str]]
    timeout: float
    late: Callable[[set[tuple[str, str]]], Exception | None]
    every: float | None = None


DONE = Done()


@dataclass(slots=True)
class Run:
    """One walk over an operation's steps, by one owner."""

    action: ActionRow
    cloud: Any
    params: Any
    known: dict[str, Any] = field(default_factory=dict)  # what steps of this run have read; never stored
    interruptible: bool = False
    interrupted: bool = False

    @property
    def instance_uuid(self) -> str:
        return self.action.instance_uuid

    def output(self, step: str) -> Any:
        """What an earlier step left, or None."""
        return self.action.outputs.get(step)

    def waits_since(self) -> int | None:
        """When the step first had nothing to do but wait, if it is begun again after that (microseconds)."""
        step = self.action.plan[self.action.cursor]
        since: int | None = self.action.outputs.get(f"{step}.since.{self.action.round}")
        return since

    def command_id(self, step: str) -> str:
        """The same for every repeat of a step, whoever repeats it; another one in the next round.

        Each cell numbers its operations, and a host may hear of several: the server tells them apart.
        """
        return f"{self.action.id}.{self.action.round}.{step}.{self.instance_uuid}"


StepDo = Callable[[Run], Awaitable[Done | Wait]]
StepUndo = Callable[[Run], Awaitable[Done]]


@dataclass(slots=True, frozen=True)
class Step:
    """One thing to do.  ``do`` and ``undo`` may run twice, so both converge.

    ``event`` is the name under which users see it, with Nova's prefix.
    """

    name: str
    do: StepDo
    undo: StepUndo | None = None
    kind: Kind = Kind.COMPENSATABLE
    event: str = ""
    interruptible: bool = True


Apply = Callable[[Tx, Run, dict[str, Any]], None]
Failing = Callable[[Tx, Run, StoredError], None]


@dataclass(slots=True, frozen=True)
class Operation:
    """A durable operation: data, not a class hierarchy.

    ``apply`` makes the changes of a step; ``failed`` leaves the instance as it shall be when all is
    undone.  ``retry_from`` names the first step of the group that is tried again on another host.
    ``patience``: seconds for which a step may fail from the pivot on until an operator is asked for, where
    that is to be sooner than the deadline.
    """

    name: str
    steps: tuple[Step, ...]
    params: type
    apply: Apply
    failed: Failing
    deadline: float  # seconds
    patience: float | None = None
    retry_from: str | None = None
    max_rounds: Callable[[Run], int] = lambda run: 1
    host_of: Callable[[Run], str | None] = lambda run: None  # whom an error of a step concerns

    def step(self, name: str) -> Step:
        """Raises KeyError for a step that this release has lost."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)
