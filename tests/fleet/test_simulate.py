"""``kilonova simulate``: hosts over several processes, faults that are wanted, and servers with them."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from kilonova.cli.simulate import simulate
from kilonova.testing.fleet.audit import complaints, guests
from kilonova.testing.fleet.fleet import Fleet


@pytest.mark.postgresql
async def test_servers_on_hosts_with_faults() -> None:
    directory = Path(tempfile.mkdtemp(prefix="kn-sim-"))
    fleet = Fleet(directory, controllers=1, safe=False)
    try:
        await fleet.up()
        await fleet.image()
        wanted = ("--servers", "24", "--fault", "start:0.3", "--seed", "7", "--clouds-yaml")
        hosts = await fleet.simulate(6, processes=2, more=(*wanted, str(fleet.clouds_yaml())))
        servers = await fleet.servers()
        assert len(servers) == 24 and hosts.log.read_text().count("ready: ") == 1
        by_status = Counter(each["status"] for each in servers.values())
        assert by_status.keys() <= {"ACTIVE", "ERROR"} and by_status["ACTIVE"] > 12
        assert await complaints(fleet) == []
        there = {host for on in guests(fleet).values() for host in on}
        assert there == {f"sim-{number:05}" for number in range(1, 7)}, "each host has some"
        parts = hosts.children()
        assert len(parts) == 2
        events = [
            event
            for uuid in servers
            for action in (await fleet.call("GET", f"/v2.1/servers/{uuid}/os-instance-actions"))[
                "instanceActions"
            ]
            for event in (
                await fleet.call("GET", f"/v2.1/servers/{uuid}/os-instance-actions/{action['request_id']}")
            )["instanceAction"]["events"]
        ]
        assert any("simulated fault" in (event.get("details") or "") for event in events)
        await hosts.kill()  # its parts notice
        async with asyncio.timeout(30):
            while any(Path(f"/proc/{pid}/cmdline").exists() for pid in parts):
                await asyncio.sleep(0.1)
    finally:
        await fleet.down()
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fault", "fly:0.1"], "is not VERB:CHANCE"),
        (["--fault", "start"], "is not VERB:CHANCE"),
        (["--fault", "start:2"], "is not VERB:CHANCE"),
        (["--hosts", "0"], "not in the range"),
        (["--servers", "5"], "--servers needs --clouds-yaml"),
    ],
)
def test_what_makes_no_sense_is_said(tmp_path: Path, arguments: list[str], says: str) -> None:
    command = [*arguments, "--state-dir", str(tmp_path)]
    done = CliRunner(env={"OS_CLIENT_CONFIG_FILE": ""}).invoke(simulate, command)
    assert done.exit_code == 2 and says in done.output, done.output
