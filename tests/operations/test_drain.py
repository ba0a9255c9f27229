"""`kilonova host drain` on a whole cloud of simulated hosts, over its real API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from kilonova.cli.main import main
from kilonova.db import hosts
from kilonova.model.states import Power, Vm
from kilonova.operations import stop
from kilonova.testing.embedded import member, server, settled
from kilonova.testing.ports import free_offset
from tests.operations.dead_hosts import Hosts, opened


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state") as made:
        made.cloud.settings = replace(made.cloud.settings, port_offset=free_offset())
        await made.cloud.serve()
        yield made


async def drain(three: Hosts, *words: str) -> Result:
    """In a thread: the cloud that it asks is in ours."""
    clouds_yaml = str(three.cloud.places.clouds_yaml)
    command = ["host", "drain", *words, "--clouds-yaml", clouds_yaml]
    return await asyncio.to_thread(CliRunner(env={"COLUMNS": "200"}).invoke, main, command)


async def stopped(three: Hosts) -> str:
    uuid = await three.boot(host="h1")
    await stop.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid)).vm_state == Vm.STOPPED
    return uuid


async def test_servers_that_run_go_live_and_those_that_are_off_go_cold(three: Hosts) -> None:
    running = [await three.boot(host="h1") for _ in range(3)]
    off = await stopped(three)
    planned = await drain(three, "h1", "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert [planned.output.count(f" {way} ") for way in ("live", "cold")] == [3, 1]
    assert (await known(three, "h1")).disabled is False

    done = await drain(three, "h1", "--deadline", "60")
    assert done.exit_code == 0, done.output
    assert "h1 is empty" in done.output and done.output.count("✓ s (") == 4
    assert (await known(three, "h1")).disabled
    assert three.hosts["h1"].empty
    for uuid in running:
        found = await server(three.cloud, uuid)
        assert (found.vm_state, found.task_state) == (Vm.ACTIVE, None)
        await three.assert_only_on(uuid, str(found.host))
    found = await server(three.cloud, off)
    assert (found.vm_state, found.task_state) == (Vm.STOPPED, None)
    await three.assert_only_on(off, str(found.host), Power.SHUTDOWN)
    assert await three.complaints() == []
    again = await drain(three, "h1")
    assert again.exit_code == 0 and "h1 is empty" in again.output


async def known(three: Hosts, name: str) -> hosts.Host:
    found = await three.cloud.db.read(lambda tx: hosts.show(tx, name))
    assert found is not None
    return found


async def test_what_stays_is_named_and_the_end_is_no_success(three: Hosts) -> None:
    stays, goes = await three.boot(host="h1"), await three.boot(host="h1")
    await three.change(stays, metadata={"drain_policy": "stay"})
    done = await drain(three, "h1", "--target", "h3", "--deadline", "60")
    assert done.exit_code == 1
    assert "s is still there: it is to stay, by its metadata" in done.output
    assert [(await server(three.cloud, uuid)).host for uuid in (stays, goes)] == ["h1", "h3"]


async def test_a_host_that_is_down_is_evacuated_when_that_is_asked_for(three: Hosts) -> None:
    uuid = await three.boot(host="h2")
    await three.lose_power("h2")
    refused = await drain(three, "h2", "--deadline", "10")
    assert refused.exit_code == 1 and "the host is down" in refused.output
    done = await drain(three, "h2", "--policy", "live,evacuate", "--deadline", "60")
    assert done.exit_code == 0, done.output
    found = await server(three.cloud, uuid)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h1")
    await three.come_back("h2")
    await three.cleared()
    await three.assert_only_on(uuid, "h1")


async def test_what_cannot_be_is_refused(three: Hosts, tmp_path: Path) -> None:
    for words, said in (
        (("nobody",), "There is no compute host 'nobody'"),
        (("h1", "--policy", "fly"), "is none of live, cold, evacuate"),
        (("h1", "--target", "h1"), "The target 'h1' is the host itself"),
        (("h1", "--target", "nobody"), "There is no compute host 'nobody'"),
    ):
        refused = await drain(three, *words)
        assert refused.exit_code != 0 and said in refused.output, refused.output
    assert (await known(three, "h1")).disabled is False
