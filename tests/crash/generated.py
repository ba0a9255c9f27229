"""The four tests that are made for every operation which changes a server at rest: each step fails; each step
runs twice; each undo runs twice; the process dies before and after each commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from kilonova.app import EmbeddedCloud
from kilonova.errors import Failed
from kilonova.journal.model import Done, Kind, Operation, Run, Wait
from kilonova.testing.embedded import kill, server
from tests.crash.broken import changed, crash_at, failing, replaced
from tests.crash.conftest import Stage
from tests.crash.world import log_of


class Scene(Protocol):
    @property
    def uuid(self) -> str:
        """The server."""


S = TypeVar("S", bound=Scene)


@dataclass(frozen=True)
class Failure:
    """Why an operation was undone: ``step`` has failed, ``after`` it had done all or before it did anything.
    ``died``: the process has died since."""

    step: str
    after: bool
    died: bool = False


@dataclass(frozen=True)
class Case(Generic[S]):
    """``look`` gives all that an undo must leave as it was.  ``succeeded`` and ``undone`` wait for the end
    and judge it; ``succeeded`` is told whether the process has died."""

    operation: Operation
    before: Callable[[EmbeddedCloud], Awaitable[S]]
    begin: Callable[[EmbeddedCloud, S], Awaitable[None]]
    look: Callable[[EmbeddedCloud, S], Awaitable[Any]]
    succeeded: Callable[[EmbeddedCloud, S, bool], Awaitable[None]]
    undone: Callable[[EmbeddedCloud, S, Any, Failure], Awaitable[None]]


def _back(operation: Operation) -> list[str]:
    """The steps whose failure is the operation's: up to where there is no way back."""
    names = []
    for step in operation.steps:
        if step.kind is Kind.RETRIABLE:
            break
        names.append(step.name)
        if step.kind is Kind.PIVOT:
            break
    return names


class Points(Generic[S]):
    """(case, step) of all cases: all, those that are undone and those that are only repeated, and undos."""

    def __init__(self, cases: Mapping[str, Case[S]]) -> None:
        self.all = [(name, step.name) for name, case in cases.items() for step in case.operation.steps]
        self.back = [(name, step) for name, case in cases.items() for step in _back(case.operation)]
        self.forward = [pair for pair in self.all if pair not in self.back]
        self.undos = [pair for pair in self.back if cases[pair[0]].operation.step(pair[1]).undo is not None]

    def last_back(self, name: str) -> str:
        """The last step that can be undone."""
        return [step for case, step in self.back if case == name][-1]


def whole_log(operation: Operation) -> list[tuple[str, str, int, str]]:
    """What is written when all goes well."""
    return [(step.name, "do", 1, "Success") for step in operation.steps]


def undone_log(operation: Operation, failed: str) -> list[tuple[str, str, int, str]]:
    """What is written when a step fails: those before it, itself, and the undos backwards."""
    upto = [step.name for step in operation.steps].index(failed)
    undone = [step for step in operation.steps[: upto + 1] if step.undo is not None]
    return [
        *whole_log(operation)[:upto],
        (failed, "do", 1, "Error"),
        *((step.name, "undo", 1, "Success") for step in reversed(undone)),
    ]


async def _is_undone(cloud: EmbeddedCloud, case: Case[S], scene: S, before: Any, failure: Failure) -> None:
    await case.undone(cloud, scene, before, failure)
    assert await log_of(cloud, scene.uuid, case.operation.name) == undone_log(case.operation, failure.step)


async def fails(cloud: EmbeddedCloud, case: Case[S], step_name: str, *, after: bool) -> None:
    """A step that fails is undone with all before it, and the user hears why."""
    scene = await case.before(cloud)
    before = await case.look(cloud, scene)
    failing(cloud, case.operation.name, step_name, Failed(f"ordered in {step_name}"), after=after)
    await case.begin(cloud, scene)
    await _is_undone(cloud, case, scene, before, Failure(step_name, after))
    found = await server(cloud, scene.uuid)
    assert found.fault is not None and found.fault.message == f"ordered in {step_name}"


async def is_repeated(cloud: EmbeddedCloud, case: Case[S], step_name: str) -> None:
    """A step from which there is no way back is done until it succeeds."""
    step = case.operation.step(step_name)
    failures = [Failed("once"), RuntimeError("twice")]

    async def fail(run: Run) -> Done | Wait:
        done = await step.do(run)
        if failures:
            raise failures.pop()
        return done

    scene = await case.before(cloud)
    replaced(cloud, case.operation.name, changed(step, do=fail))
    await case.begin(cloud, scene)
    await case.succeeded(cloud, scene, False)
    assert failures == []


async def runs_twice(cloud: EmbeddedCloud, case: Case[S], step_name: str) -> None:
    """It does no more than once."""
    step = case.operation.step(step_name)
    calls = []

    async def twice(run: Run) -> Done | Wait:
        calls.append(step_name)
        await step.do(run)
        return await step.do(run)

    scene = await case.before(cloud)
    replaced(cloud, case.operation.name, changed(step, do=twice))
    await case.begin(cloud, scene)
    await case.succeeded(cloud, scene, False)
    assert calls


async def undo_runs_twice(cloud: EmbeddedCloud, case: Case[S], step_name: str, last: str) -> None:
    """It does no more than once.  ``last``: the step that fails."""
    step = case.operation.step(step_name)
    calls = []

    async def twice(run: Run) -> Done:
        calls.append(step_name)
        assert step.undo is not None
        await step.undo(run)
        return await step.undo(run)

    scene = await case.before(cloud)
    before = await case.look(cloud, scene)
    replaced(cloud, case.operation.name, changed(step, undo=twice))
    failing(cloud, case.operation.name, last, Failed("ordered"), after=last == step_name)
    if last == step_name:
        failed = cloud.runner.operations[case.operation.name].step(step_name)
        replaced(cloud, case.operation.name, changed(failed, undo=twice))
    await case.begin(cloud, scene)
    await _is_undone(cloud, case, scene, before, Failure(last, after=last == step_name))
    assert calls == [step_name]


async def dies(stage: Stage, case: Case[S], step_name: str, what: str) -> None:
    """The process dies before or after a commit; the next one comes to the same end."""
    async with stage.cloud() as cloud:
        scene = await case.before(cloud)
        died = crash_at(cloud, case.operation.name, step_name, what)
        await case.begin(cloud, scene)
        async with asyncio.timeout(60):
            await died.wait()
        await kill(cloud)
    async with stage.cloud() as cloud:
        await case.succeeded(cloud, scene, True)


async def dies_unwinding(stage: Stage, case: Case[S], step_name: str, what: str, last: str) -> None:
    """The process dies while it undoes the steps from the ``last`` on, or when that one has failed."""
    async with stage.cloud() as cloud:
        scene = await case.before(cloud)
        before = await case.look(cloud, scene)
        failed = step_name if what == "failed" else last
        failing(cloud, case.operation.name, failed, Failed("ordered"), after=True)
        died = crash_at(cloud, case.operation.name, step_name, what)
        await case.begin(cloud, scene)
        async with asyncio.timeout(60):
            await died.wait()
        await kill(cloud)
    async with stage.cloud() as cloud:
        await _is_undone(cloud, case, scene, before, Failure(failed, after=True, died=True))
