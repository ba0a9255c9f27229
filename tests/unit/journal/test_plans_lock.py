"""Plans ever released stay runnable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from kilonova.journal.model import Operation
from kilonova.operations.create_steps import CREATE
from kilonova.operations.registry import OPERATIONS

LOCK = Path(__file__).parents[3] / "plans.lock"


def locked(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """(operation, steps) of each line."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    parts = [line.partition(":") for line in lines]
    return [(name.strip(), tuple(steps.split())) for name, _, steps in parts]


def complaints(plans: list[tuple[str, tuple[str, ...]]], operations: Mapping[str, Operation]) -> list[str]:
    """What the lock and the code do not agree on."""
    result = []
    for name, steps in plans:
        operation = operations.get(name)
        if operation is None:
            result.append(f"the operation '{name}' has lost its code")
            continue
        known = {step.name for step in operation.steps}
        result += [f"the step '{step}' of '{name}' has lost its code" for step in steps if step not in known]
    for name, operation in operations.items():
        plan = tuple(step.name for step in operation.steps)
        if (name, plan) not in plans:
            result.append(f"plans.lock lacks the line '{name}: {' '.join(plan)}'")
    return result


def test_plans_ever_released_have_their_code() -> None:
    assert complaints(locked(LOCK.read_text()), OPERATIONS) == []


def test_each_plan_stands_in_the_lock_once() -> None:
    plans = locked(LOCK.read_text())
    assert len(plans) == len(set(plans)) >= len(OPERATIONS)


@pytest.mark.parametrize(
    ("plans", "said"),
    [
        ([("create", ("place", "bless"))], "the step 'bless' of 'create' has lost its code"),
        ([("sing", ("do",))], "the operation 'sing' has lost its code"),
        ([], f"plans.lock lacks the line 'create: {' '.join(step.name for step in CREATE.steps)}'"),
    ],
)
def test_what_is_lost_or_not_written_down_is_named(
    plans: list[tuple[str, tuple[str, ...]]], said: str
) -> None:
    assert said in complaints(plans, {"create": CREATE})


def test_no_operation_names_a_step_twice() -> None:
    """Outputs, events and cursors are found by the name."""
    for operation in OPERATIONS.values():
        names = [step.name for step in operation.steps]
        assert len(names) == len(set(names)), operation.name
        assert operation.retry_from is None or operation.retry_from in names
