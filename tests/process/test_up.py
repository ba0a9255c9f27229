"""``kilonova up --driver fake`` as a user starts it: what it says, what it makes, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kilonova.cli.up import up
from tests.process.cloud import KILONOVA, Cloud, Load, got, is_root
from tests.process.conftest import Make

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


async def boot_one(cloud: Cloud, name: str = "one") -> str:
    """The id of a server that was asked for and is ACTIVE."""
    image = await cloud.image()
    client = await cloud.client()
    load = Load(cloud)
    await load.boot(name, image, client)
    client.close()
    assert not load.refused
    (uuid,) = load.accepted
    servers = await cloud.settled()
    assert servers[uuid]["status"] == "ACTIVE"
    return uuid


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """One cloud that some tests look at."""
    cloud = Cloud(tmp_path_factory.mktemp("running") / "state")
    seconds = cloud.start()
    print(f"ready after {seconds:.2f} s, {cloud.memory():.0f} MiB")
    yield cloud
    try:
        cloud.stop()
    finally:
        cloud.clear()


def test_a_first_start_says_what_it_does_and_a_boot_is_accepted_at_once(running: Cloud) -> None:
    (ready,) = running.out
    assert ready.startswith(f"ready: http://127.0.0.1:{8774 + running.offset}/v2.1 ")
    assert f"OS_CLIENT_CONFIG_FILE={running.state_dir}/clouds.yaml OS_CLOUD=kilonova" in ready
    assert len(running.errors) >= 3
    assert all(line.startswith("kilonova: ") and line.endswith(" ...") for line in running.errors)
    asyncio.run(boot_one(running))


def test_clouds_yaml_has_a_member_and_an_administrator(running: Cloud) -> None:
    file = running.state_dir / "clouds.yaml"
    assert file.stat().st_mode & 0o777 == 0o600
    clouds = json.loads(file.read_text())["clouds"]  # which is YAML too
    assert set(clouds) == {"kilonova", "kilonova-admin"}
    for name, user, project in (("kilonova", "demo", "demo"), ("kilonova-admin", "admin", "admin")):
        auth = clouds[name]["auth"]
        assert auth["auth_url"] == f"http://127.0.0.1:{5000 + running.offset}/v3"
        assert (auth["username"], auth["project_name"]) == (user, project)
        assert clouds[name]["region_name"] == "RegionOne"

    async def hypervisors(who: str) -> int:
        client = await running.client(who)
        status, _, _ = await client.request("GET", "/v2.1/os-hypervisors")
        client.close()
        return status

    assert asyncio.run(hypervisors("kilonova-admin")) == 200
    assert asyncio.run(hypervisors("kilonova")) == 403


def test_a_second_start_finds_everything_as_it_was(make: Make) -> None:
    cloud = make()

    async def what_there_is() -> dict[str, object]:
        image = await cloud.client(service="image")
        network = await cloud.client(service="network")
        compute = await cloud.client()
        result = {
            "images": [each["id"] for each in (await got(image, "/v2/images"))["images"]],
            "networks": [each["id"] for each in (await got(network, "/v2.0/networks"))["networks"]],
            "flavors": [each["id"] for each in (await got(compute, "/v2.1/flavors"))["flavors"]],
            "servers": sorted(await cloud.servers()),
        }
        for client in (image, network, compute):
            client.close()
        return result

    cloud.start()
    uuid = asyncio.run(boot_one(cloud))
    before, clouds = asyncio.run(what_there_is()), (cloud.state_dir / "clouds.yaml").read_text()
    assert len(before["images"]) == len(before["networks"]) == 1  # type: ignore[arg-type]
    assert before["servers"] == [uuid]
    cloud.stop()
    cloud.start()
    assert asyncio.run(what_there_is()) == before
    assert (cloud.state_dir / "clouds.yaml").read_text() == clouds
    assert asyncio.run(cloud.servers())[uuid]["status"] == "ACTIVE"
    cloud.stop()
    state = asyncio.run(cloud.stopped())
    assert state.leaks == [] and set(state.servers) == {uuid}


def test_two_clouds_run_side_by_side(running: Cloud, make: Make) -> None:
    other = make()
    other.offset = running.offset + 7
    other.start()
    uuid = asyncio.run(boot_one(running, "here"))
    assert uuid in asyncio.run(running.servers())
    assert asyncio.run(other.servers()) == {}
    other.stop()
    assert uuid in asyncio.run(running.servers())


def refused(cloud: Cloud, *more: str) -> str:
    """What it says when it does not start: one line that begins with Error, and no traceback."""
    cloud.spawn(*more)
    status = cloud.ended()
    assert status in (1, 2), (status, cloud.errors)
    assert cloud.out == []
    text = "\n".join(cloud.errors)
    assert "Traceback" not in text
    assert cloud.errors[-1].startswith("Error: "), text
    return cloud.errors[-1]


def test_a_state_directory_in_use_is_refused_and_the_first_cloud_does_not_notice(
    running: Cloud, make: Make
) -> None:
    second = make()
    second.state_dir = running.state_dir
    text = refused(second)
    assert str(running.state_dir) in text and "--state-dir" in text
    asyncio.run(boot_one(running, "still here"))


def test_a_taken_port_is_refused_before_anything_is_begun(running: Cloud, make: Make) -> None:
    second = make()
    second.offset = running.offset
    text = refused(second)
    assert str(5000 + running.offset) in text and "--port-offset" in text
    assert len(second.errors) == 1  # no progress before it


def refused_at_once(directory: Path, *more: str) -> str:
    """The same without a process of its own, for what is found out before anything is begun."""
    state = directory / "state"
    ran = CliRunner().invoke(up, ["--driver", "fake", "--state-dir", str(state), *more])
    assert ran.exit_code in (1, 2) and not state.exists()
    assert ran.output.splitlines()[-1].startswith("Error: "), ran.output
    return str(ran.output)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[DEFAULT\nno end", "bad.conf"),
        ("[fake]\ndelay = soon\n", "delay"),
        ("[scheduler]\nmax_attempts = 0\n", "max_attempts"),
        ("[libvirt]\nvirt_type = magic\n", "virt_type"),
    ],
)
def test_a_bad_config_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    bad = tmp_path / "bad.conf"
    bad.write_text(text)
    message = refused_at_once(tmp_path, "--config-file", str(bad))
    assert str(bad) in message and said in message


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--config-file", "/nowhere/at-all.conf"], "at-all.conf"),
        (["--driver", "vmware"], "vmware"),
        (["--port-offset", "-1"], "-1"),
        (["--port-offset", "60000"], "60000"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path: Path, more: list[str], said: str) -> None:
    assert said in refused_at_once(tmp_path, *more)


def test_an_address_that_is_not_ours_is_named(make: Make) -> None:
    assert "203.0.113.7" in refused(make(), "--listen", "203.0.113.7")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user may enter."""
    made = Path(tempfile.mkdtemp(prefix="kilonova-process-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def as_somebody(directory: Path, config: str = "") -> Cloud:
    """A cloud without privileges, whoever runs the tests."""
    if not is_root():
        return Cloud(directory / "state", config)
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    if subprocess.run([*NOBODY, KILONOVA, "--help"], capture_output=True, check=False).returncode:
        pytest.skip(f"another user cannot run {KILONOVA}")
    return Cloud(directory / "state", config, before=NOBODY)


def test_it_needs_no_root(open_directory: Path) -> None:
    cloud = as_somebody(open_directory)
    cloud.state_dir.mkdir(mode=0o700)
    if is_root():
        os.chown(cloud.state_dir, 65534, 65534)
    try:
        cloud.start()
        assert cloud.process is not None
        uids = Path(f"/proc/{cloud.process.pid}/status").read_text().split("Uid:")[1].split()[:4]
        assert "0" not in uids
        asyncio.run(boot_one(cloud))
        cloud.stop()
    finally:
        cloud.clear()
    assert asyncio.run(cloud.stopped()).leaks == []


def test_a_state_directory_that_cannot_be_written_is_refused(open_directory: Path) -> None:
    cloud = as_somebody(open_directory)
    cloud.state_dir.mkdir()
    cloud.state_dir.chmod(0o555)
    try:
        text = refused(cloud)
    finally:
        cloud.clear()
    assert str(cloud.state_dir) in text and "Permission denied" in text


def test_a_state_directory_below_one_that_cannot_be_written_is_refused(open_directory: Path) -> None:
    (open_directory / "closed").mkdir()
    (open_directory / "closed").chmod(0o555)
    cloud = as_somebody(open_directory)
    cloud.state_dir = open_directory / "closed" / "state"
    try:
        assert "Permission denied" in refused(cloud)
    finally:
        cloud.clear()


def test_a_database_that_is_none_is_refused_and_left_alone(make: Make) -> None:
    cloud = make()
    cloud.state_dir.mkdir()
    (cloud.state_dir / "kilonova.db").write_bytes(b"not a database at all " * 100)
    text = refused(cloud)
    assert "kilonova.db" in text or "database" in text
    assert (cloud.state_dir / "kilonova.db").read_bytes().startswith(b"not a database at all ")
