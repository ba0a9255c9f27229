"""An agent has nothing of a controller in its process, and a cloud in one process nothing of the bus."""

from __future__ import annotations

import subprocess
import sys

import pytest

DATABASE = ("sqlalchemy", "psycopg", "alembic", "kilonova.db", "kilonova.journal", "kilonova.api")
FLEET = ("nats", "nkeys", "psycopg")


def imported(module: str) -> set[str]:
    """All that is imported with a module, in a process of its own."""
    program = f"import sys, {module}; print(chr(10).join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("kilonova.agent_process", DATABASE),
        ("kilonova.cli.host", FLEET),
        ("kilonova.app", FLEET),
        ("kilonova.cli.main", (*DATABASE, *FLEET)),
    ],
)
def test_what_a_process_does_not_import(module: str, without: tuple[str, ...]) -> None:
    found = imported(module)
    assert [each for each in without if each in found] == []
