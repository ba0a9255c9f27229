"""Steps that do what a test wants, and processes that die where a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kilonova.app import EmbeddedCloud
from kilonova.errors import Failed
from kilonova.journal.model import ActionRow, Done, Operation, Run, Step, Wait

Do = Callable[[Run], Awaitable[Done | Wait]]


def changed(step: Step, **new: object) -> Step:
    values = {field: getattr(step, field) for field in step.__dataclass_fields__}
    return Step(**{**values, **new})  # type: ignore[arg-type]


def replaced(cloud: EmbeddedCloud, name: str, step: Step) -> None:
    """Put another step in the place of the one of that name."""
    operation = cloud.runner.operations[name]
    steps = tuple(step if each.name == step.name else each for each in operation.steps)
    values = {field: getattr(operation, field) for field in operation.__dataclass_fields__}
    cloud.runner.operations = {**cloud.runner.operations, name: Operation(**{**values, "steps": steps})}


def failing(
    cloud: EmbeddedCloud, name: str, step_name: str, error: Exception, *, after: bool = False
) -> None:
    """Have a step fail: before it does anything, or when it has done all."""
    step = cloud.runner.operations[name].step(step_name)

    async def fail(run: Run) -> Done | Wait:
        if after:
            await step.do(run)
        raise error

    replaced(cloud, name, changed(step, do=fail))


def last_fails(cloud: EmbeddedCloud, name: str) -> str:
    """Have the last step of an operation fail; its name."""
    last = cloud.runner.operations[name].steps[-1].name
    failing(cloud, name, last, Failed("ordered at the end"))
    return last


class Gate:
    """A step that waits, before or after it has done its work, until it is let on."""

    def __init__(self, cloud: EmbeddedCloud, name: str, step_name: str, *, after: bool = False) -> None:
        self.reached, self.goes_on = asyncio.Event(), asyncio.Event()
        step = cloud.runner.operations[name].step(step_name)

        async def slow(run: Run) -> Done | Wait:
            done = await step.do(run) if after else None
            self.reached.set()
            await self.goes_on.wait()
            return await step.do(run) if done is None else done

        replaced(cloud, name, changed(step, do=slow))

    async def wait(self) -> None:
        await asyncio.wait_for(self.reached.wait(), 60)

    def open(self) -> None:
        self.goes_on.set()


class UndoGate(Gate):
    """The same for the undo of a step."""

    def __init__(self, cloud: EmbeddedCloud, name: str, step_name: str) -> None:
        self.reached, self.goes_on = asyncio.Event(), asyncio.Event()
        step = cloud.runner.operations[name].step(step_name)

        async def slow(run: Run) -> Done:
            self.reached.set()
            await self.goes_on.wait()
            assert step.undo is not None
            return await step.undo(run)

        replaced(cloud, name, changed(step, undo=slow))


class Crash(asyncio.CancelledError):
    """The process dies here."""


def crash_at(cloud: EmbeddedCloud, name: str, step: str, what: str, round_: int = 1) -> asyncio.Event:
    """Have the runner die right after ``what`` (do, done, failed, undo, undone) of a step: at ``do`` and
    ``undo`` nothing is done yet, at the others it has just been committed.  The event is set then."""
    died = asyncio.Event()

    def look(row: ActionRow, at: str, happened: str) -> None:
        if (row.operation, at, happened, row.round) == (name, step, what, round_):
            died.set()
            raise Crash

    cloud.runner.on_step = look
    return died
