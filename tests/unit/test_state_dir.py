"""The state directory: one process at a time, and nothing secret that others can read."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from kilonova import clouds_yaml
from kilonova.clock import SystemClock
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.errors import Failed
from kilonova.state_dir import StateDir, write_secret


@pytest.fixture
def wide_open() -> Iterator[None]:
    """A umask that forbids nothing."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "a" / "b")
    with pytest.raises(Failed, match=r"Another kilonova.*--state-dir"):
        StateDir.open(tmp_path / "a" / "b")
    program = f"from pathlib import Path; from kilonova.state_dir import StateDir; StateDir.open(Path({str(state.path)!r}))"  # noqa: E501
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert other.returncode == 1 and "Another kilonova" in other.stderr
    state.close()
    StateDir.open(tmp_path / "a" / "b").close()


def test_the_lock_is_not_inherited(tmp_path: Path) -> None:
    """A daemon that outlives us must not keep the next start out."""
    state = StateDir.open(tmp_path)
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        state.close()
        StateDir.open(tmp_path).close()
    finally:
        child.kill()
        child.wait(60)


def test_a_place_that_cannot_be_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(Failed, match=str(path)):
            StateDir.open(path)


@pytest.mark.usefixtures("wide_open")
def test_secrets_are_for_us_alone(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path)
    passwords = state.passwords()
    assert passwords.keys() == {"admin", "demo"}
    assert len(set(passwords.values())) == 2 and min(map(len, passwords.values())) >= 24
    assert state.passwords() == passwords, "they stay"
    assert mode(tmp_path / "passwords.json") == 0o600
    assert mode(state.private("keys")) == 0o700
    assert mode(tmp_path / "lock") == 0o600
    state.close()


@pytest.mark.usefixtures("wide_open")
def test_a_private_directory_that_was_open_is_closed(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path)
    (tmp_path / "keys").mkdir(mode=0o755)
    assert mode(state.private("keys")) == 0o700
    state.close()


@pytest.mark.usefixtures("wide_open")
async def test_the_database_is_for_us_alone(tmp_path: Path) -> None:
    """Hashes of passwords, user data and more are in it, and QEMU's user must search the directory."""
    db = SqliteDatabase(tmp_path / "kilonova.db", SystemClock())
    await bring_up(db)
    for each in tmp_path.iterdir():
        assert mode(each) == 0o600, each.name
    assert {each.name for each in tmp_path.iterdir()} >= {"kilonova.db", "kilonova.db-wal"}
    await db.close()


def test_the_compute_id_stays_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path)
    found = state.compute_id()
    assert str(uuid.UUID(found)) == found == state.compute_id()
    (tmp_path / "compute_id").write_text(" " + found.upper() + "\n")
    assert state.compute_id() == found
    (tmp_path / "compute_id").write_text("not one")
    with pytest.raises(Failed, match="compute_id holds no uuid"):
        state.compute_id()
    state.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"admin": 1, "demo": "x"}', '{"admin": "x"}', "\xff"])
def test_damaged_passwords_are_told_and_not_shown(tmp_path: Path, text: str) -> None:
    state = StateDir.open(tmp_path)
    (tmp_path / "passwords.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Failed, match=r"passwords\.json") as told:
        state.passwords()
    assert '"x"' not in str(told.value)
    state.close()


@pytest.mark.usefixtures("wide_open")
def test_a_secret_is_written_whole_and_follows_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "s.new").symlink_to(victim)
    (tmp_path / "s.json").symlink_to(victim)
    write_secret(tmp_path / "s.json", "one")
    assert victim.read_text() == "untouched"
    assert (tmp_path / "s.json").read_text() == "one" and not (tmp_path / "s.json").is_symlink()
    write_secret(tmp_path / "s.json", "two")
    assert ((tmp_path / "s.json").read_text(), mode(tmp_path / "s.json")) == ("two", 0o600)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["s.json", "victim"]


@pytest.mark.usefixtures("wide_open")
def test_clouds_yaml_is_read_by_yaml_and_for_us_alone(tmp_path: Path) -> None:
    passwords = {"admin": "a\"'\\: #\u00e9", "demo": "{d: *x}"}
    clouds_yaml.write(tmp_path / "clouds.yaml", "http://127.0.0.1:5000", passwords)
    assert mode(tmp_path / "clouds.yaml") == 0o600
    found = yaml.safe_load((tmp_path / "clouds.yaml").read_text())
    assert found == json.loads((tmp_path / "clouds.yaml").read_text())
    clouds = found["clouds"]
    assert {name: each["auth"]["password"] for name, each in clouds.items()} == {
        "kilonova": passwords["demo"],
        "kilonova-admin": passwords["admin"],
    }
    assert {(each["auth"]["username"], each["auth"]["project_name"]) for each in clouds.values()} == {
        ("demo", "demo"),
        ("admin", "admin"),
    }
    assert clouds["kilonova"]["auth"]["auth_url"] == "http://127.0.0.1:5000/v3"


@pytest.mark.filterwarnings("ignore::openstack.warnings.RemovedInSDK60Warning")  # of itself
def test_openstacksdk_reads_clouds_yaml(tmp_path: Path) -> None:
    from openstack.config import OpenStackConfig

    clouds_yaml.write(tmp_path / "clouds.yaml", "http://127.0.0.1:5000", {"admin": "a", "demo": "d"})
    config = OpenStackConfig(config_files=[str(tmp_path / "clouds.yaml")], load_envvars=False)
    assert set(config.get_cloud_names()) == {"kilonova", "kilonova-admin"}
    region = config.get_one(cloud="kilonova-admin")
    assert region.config["auth"]["username"] == "admin" and region.region_name == "RegionOne"
    assert region.get_api_version("identity") == "3"
