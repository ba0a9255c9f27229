"""``kilonova states``: the state table, as the code has it."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

from kilonova.model.states import GUARDS, STATUS


def _set(values: frozenset[str | None] | frozenset[str] | None) -> str:
    if values is None:
        return "any"
    return ", ".join(sorted(value or "idle" for value in values)) or "-"


@click.command()
def states() -> None:
    """Print which operation may begin in which state, and which status is shown."""
    console = Console()
    columns = ("operation", "vm_state", "task_state", "lock", "sets", "action", "policy")
    guards = Table(*columns, title="Operations")
    for guard in GUARDS.values():
        guards.add_row(
            guard.operation,
            _set(guard.vm),
            _set(guard.task),
            "yes" if guard.lock else "no",
            guard.sets or "",
            guard.action,
            guard.policy,
        )
    console.print(guards)
    shown = Table("vm_state", "status", "but while", title="Status")
    for vm_state, (default, by_task) in STATUS.items():
        shown.add_row(vm_state, default, "\n".join(f"{task}: {status}" for task, status in by_task.items()))
    console.print(shown)
