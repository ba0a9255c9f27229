"""The four tests that every operation on one host gets: each step fails; each step runs twice; each undo runs
twice; the process dies before and after each commit.  They say which step it was and compare the world."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.operations.registry import OPERATIONS
from tests.crash import generated, interface_scenes, scenes, shelf_scenes, volume_scenes
from tests.crash.conftest import Stage, crash_points
from tests.crash.generated import Case, Points

CASES: dict[str, Case[Any]] = {
    **scenes.CASES,
    **shelf_scenes.CASES,
    **interface_scenes.CASES,
    **volume_scenes.CASES,
}
POINTS = Points(CASES)
ELSEWHERE = {
    "confirm_resize": "test_resize.py",
    "evacuate": "test_evacuate.py",
    "free_volumes": "test_volumes.py",
    "live_migrate": "test_live_migrate.py",
    "resize": "test_resize.py",
    "revert_resize": "test_resize.py",
}
"""Operations between hosts, which get the same four tests in files of their own."""


def test_every_operation_has_a_case() -> None:
    assert {case.operation.name for case in CASES.values()} | set(ELSEWHERE) == set(OPERATIONS)


@pytest.mark.capability("MG-GEN-1", "MG-SHV-6", "MG-DEV-2", "MG-DEV-3", "MG-DEV-7", "MG-DEV-8")
@pytest.mark.parametrize("after", [False, True], ids=["before it did anything", "when it had done all"])
@pytest.mark.parametrize(("name", "step_name"), POINTS.back)
async def test_a_step_that_fails_is_undone_with_all_before_it(
    cloud: EmbeddedCloud, name: str, step_name: str, after: bool
) -> None:
    await generated.fails(cloud, CASES[name], step_name, after=after)


@pytest.mark.parametrize(("name", "step_name"), POINTS.forward)
async def test_a_step_from_which_there_is_no_way_back_is_repeated(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    await generated.is_repeated(cloud, CASES[name], step_name)


@pytest.mark.parametrize(("name", "step_name"), POINTS.all)
async def test_a_step_that_runs_twice_does_no_more_than_once(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    await generated.runs_twice(cloud, CASES[name], step_name)


@pytest.mark.parametrize(("name", "step_name"), POINTS.undos)
async def test_an_undo_that_runs_twice_does_no_more_than_once(
    cloud: EmbeddedCloud, name: str, step_name: str
) -> None:
    await generated.undo_runs_twice(cloud, CASES[name], step_name, POINTS.last_back(name))


@pytest.mark.capability("MG-INIT-8", "MG-INIT-12", "MG-INIT-16")
@pytest.mark.parametrize(("stage", "what"), crash_points("do", "done"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), POINTS.all)
async def test_the_process_dies_before_or_after_a_commit(
    stage: Stage, name: str, step_name: str, what: str
) -> None:
    await generated.dies(stage, CASES[name], step_name, what)


@pytest.mark.parametrize(("stage", "what"), crash_points("failed", "undo", "undone"), indirect=["stage"])
@pytest.mark.parametrize(("name", "step_name"), POINTS.undos)
async def test_the_process_dies_while_unwinding(stage: Stage, name: str, step_name: str, what: str) -> None:
    """``failed``: right after it was written down that this step has failed, before any undo."""
    await generated.dies_unwinding(stage, CASES[name], step_name, what, POINTS.last_back(name))
