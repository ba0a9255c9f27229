from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from kilonova.cli.main import main

Command = Callable[..., Awaitable[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run ``kilonova WORDS --state-dir DIR`` beside a cloud that may be running; gives what it printed.

    With ``fails`` it must end with an error.
    """

    async def run(*words: str, fails: bool = False, state_dir: Path | None = None) -> str:
        where = ["--state-dir", str(state_dir or tmp_path / "state")]
        done = await asyncio.to_thread(CliRunner(env={"COLUMNS": "250"}).invoke, main, [*words, *where])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert (done.exit_code != 0) == fails, done.output
        return done.output

    return run


def rows(output: str) -> list[list[str]]:
    """The cells of the table in it, without its head."""
    lines = [line for line in output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
