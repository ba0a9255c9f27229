"""The command itself, the table of states, and state directories that are none."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from click.testing import CliRunner

from kilonova import __version__
from kilonova.cli.main import main
from kilonova.model.states import GUARDS, STATUS
from kilonova.testing.embedded import embedded
from tests.unit.cli.conftest import Command, rows


def invoke(*words: str) -> str:
    done = CliRunner(env={"COLUMNS": "400"}).invoke(main, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def test_every_command_says_what_it_does() -> None:
    help_text = invoke("--help")
    for name in ("up", "explain", "operation", "states"):
        assert f"  {name} " in help_text
        assert "Usage:" in invoke(name, "--help")
    assert __version__ in invoke("--version")
    assert CliRunner().invoke(main, ["none"]).exit_code == 2


def test_states_prints_the_table_that_the_code_goes_by() -> None:
    shown = invoke("states")
    operations = {cells[0]: cells for cells in rows(shown) if len(cells) == 7}
    assert set(operations) == set(GUARDS)
    assert operations["start"] == [
        "start",
        "stopped",
        "idle",
        "yes",
        "powering-on",
        "start",
        "os_compute_api:servers:start",
    ]
    assert operations["delete"][1:4] == ["any", "any", "yes"]
    statuses = {cells[0]: cells[1] for cells in rows(shown) if len(cells) == 3 and cells[0]}
    assert statuses == {vm_state: status for vm_state, (status, _) in STATUS.items()}


async def test_where_there_is_no_cloud(tmp_path: Path, command: Command) -> None:
    missing = await command("operation", "list", fails=True)
    assert "does not exist" in missing
    (tmp_path / "empty").mkdir()
    empty = await command("operation", "list", fails=True, state_dir=tmp_path / "empty")
    assert empty == (f"Error: There is no cloud in {tmp_path / 'empty'}: start one with `kilonova up`.\n")
    assert list((tmp_path / "empty").iterdir()) == []  # a look makes none


async def test_databases_that_are_none_of_this_release(tmp_path: Path, command: Command) -> None:
    for name, content in (("text", b"this is no database at all" * 100), ("nothing", b"")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kilonova.db").write_bytes(content)
        assert "Error: " in await command("explain", "x", fails=True, state_dir=tmp_path / name)
    async with embedded(tmp_path / "state"):
        pass
    with sqlite3.connect(tmp_path / "state" / "kilonova.db") as connection:
        connection.execute("UPDATE schema_version SET revision = '9999'")
    connection.close()
    told = await command("operation", "list", fails=True)
    assert told.startswith("Error: The database is at schema 9999 and this release needs 0002")
