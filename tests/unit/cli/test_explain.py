"""``kilonova explain``: each host that was looked at, and what became of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kilonova.app import EmbeddedCloud
from kilonova.db import hosts, instances
from kilonova.errors import HostFault
from kilonova.operations import create, delete
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import embedded, fake_driver, member, settled
from kilonova.testing.simulated_hosts import simulated_hosts
from tests.unit.cli.conftest import Command, rows

OPTIONS: dict[str, dict[str, object]] = {
    "DEFAULT": {"host": "h1"},
    "fake": {"vcpus": 1000, "memory_mb": 2_000_000, "disk_gb": 100_000},
}


@asynccontextmanager
async def running(tmp_path: Path) -> AsyncIterator[EmbeddedCloud]:
    """Three hosts, chosen in the order of their names."""
    async with (
        embedded(tmp_path / "state", **OPTIONS) as cloud,
        simulated_hosts(cloud, "h2", "h3"),
    ):
        yield cloud


async def boot(cloud: EmbeddedCloud, name: str = "s", **more: Any) -> str:
    request = CreateServer(name=name, flavor_id="42", image_id=cloud.example_image, **more)
    (made,) = await create.submit(cloud.cloud, member(cloud), request)
    await settled(cloud, made.uuid)
    return made.uuid


async def disable(cloud: EmbeddedCloud, host: str, reason: str) -> None:
    now = cloud.clock.now()
    await cloud.db.write(lambda tx: hosts.set_disabled(tx, host, True, reason, now))
    cloud.scheduler.forget()


async def test_the_host_that_was_chosen_and_those_that_were_not(tmp_path: Path, command: Command) -> None:
    async with running(tmp_path) as cloud:
        await disable(cloud, "h1", "two fans")
        uuid = await boot(cloud)
        told = await command("explain", uuid)
        assert told.startswith(f"s ({uuid}) is active.\n")
        assert rows(told) == [["h1", "disabled (two fans)"], ["h2", "chosen"]]
    assert rows(await command("explain", uuid)) == rows(told)  # and when the cloud is down


async def test_when_no_host_would_do(tmp_path: Path, command: Command) -> None:
    async with running(tmp_path) as cloud:
        await disable(cloud, "h2", "[red]paint[/red]")  # no markup of ours
        fake_driver(cloud).faults.add("start", HostFault("no [memory]"))
        uuid = await boot(cloud, host="h1")
        told = await command("explain", uuid)
    assert "is error.\nIts creation failed in the step 'place': No valid host was found." in told
    assert rows(told) == [
        ["h1", "it failed there: no [memory]"],
        ["h2", "the host 'h1' was asked for"],
        ["h3", "the host 'h1' was asked for"],
    ]


async def test_hosts_that_were_tried(tmp_path: Path, command: Command) -> None:
    async with running(tmp_path) as cloud:
        driver = fake_driver(cloud)
        driver.faults.add("start", HostFault("no [memory]"), times=2)
        uuid = await boot(cloud, "[/bold] of [blue]")
        told = await command("explain", uuid)
        assert told.startswith(f"[/bold] of [blue] ({uuid}) is active.\n")
        assert rows(told) == [["h1", "tried, failed: no [memory]"], ["h2", "chosen"]]
        forced = await boot(cloud, availability_zone="nova:h1")
        told = await command("explain", forced)
    assert "failed in the step 'start': no [memory]" in told
    assert rows(told) == [["h1", "tried, failed: no [memory]"]]


async def test_names_mean_the_newest_server_of_that_name(tmp_path: Path, command: Command) -> None:
    async with running(tmp_path) as cloud:
        await boot(cloud, "web")
        second = await boot(cloud, "web")
        assert f"({second})" in await command("explain", "web")
        await delete.submit(cloud.cloud, member(cloud), second)
        await settled(cloud, second)
        told = await command("explain", second)
        assert "is deleted." in told and rows(told) == [["h1", "chosen"]]
        assert "There is no server 'none'." in await command("explain", "none", fails=True)


async def test_without_any_host(tmp_path: Path, command: Command) -> None:
    async with embedded(tmp_path / "state", **OPTIONS) as cloud:
        await cloud.db.write(lambda tx: hosts.remove(tx, "h1"))
        cloud.scheduler.forget()
        uuid = await boot(cloud)
    told = await command("explain", uuid)
    assert "No valid host was found: there is none at all." in told
    assert told.endswith("There was no host to look at.\n")


async def test_while_it_is_being_placed(tmp_path: Path, command: Command) -> None:
    async with embedded(tmp_path / "state", **OPTIONS) as cloud:
        cloud.runner._stopping = True  # nobody takes it up
        request = CreateServer(name="s", flavor_id="42", image_id=cloud.example_image)
        (made,) = await create.submit(cloud.cloud, member(cloud), request)
        assert (await command("explain", made.uuid)).endswith("No host has been looked at yet.\n")
        cloud.runner._stopping = False


async def test_how_many_hosts_each_filter_refused(tmp_path: Path, command: Command) -> None:
    async with running(tmp_path) as cloud:
        await disable(cloud, "h2", "paint")
        await disable(cloud, "h3", "paint")
        placed, failed = await boot(cloud), await boot(cloud, host="h2")
        assert "\nComputeFilter refused 2 hosts.\n" in await command("explain", placed)
        told = await command("explain", failed)
        assert "\nRequestedHost refused 2 hosts.\nComputeFilter refused 1 hosts.\n" in told
        fault = (await cloud.db.read(lambda tx: instances.show(tx, failed))).fault  # type: ignore[union-attr]
        assert fault is not None and "RequestedHost refused 2 hosts" in fault.details


async def test_asking_again_about_hosts_as_they_are_now(tmp_path: Path, command: Command) -> None:
    async with running(tmp_path) as cloud:
        await disable(cloud, "h1", "paint")
        uuid = await boot(cloud)
        now = cloud.clock.now()
        await cloud.db.write(lambda tx: hosts.set_disabled(tx, "h1", False, None, now))
        await disable(cloud, "h3", "fire")
        told = await command("explain", uuid, "--now")
        first, _, second = told.partition("If it had to be placed now:")
        assert rows(first) == [["h1", "disabled (paint)"], ["h2", "chosen"]]
        assert "3 hosts were looked at.\n  ComputeFilter refuses 1.\nIt would go to h1.\n" in second
        assert [row[::2] for row in rows(second)][2] == ["h3", "disabled (fire)"]
        assert rows(second)[0][0] == "h1" and "RAMWeigher +1" in rows(second)[0][2]


async def test_a_server_that_is_only_thought_of(tmp_path: Path, command: Command) -> None:
    async with running(tmp_path) as cloud:
        await disable(cloud, "h3", "[fire]")
        before = await cloud.db.read(lambda tx: [instances.uuids_by_host(tx, name) for name in ("h1", "h2")])
        image = ("--image", cloud.example_image)
        told = await command("explain", "--dry-run", "--flavor", "42", *image)
        assert "3 hosts were looked at.\n  ComputeFilter refuses 1.\nIt would go to h1.\n" in told
        assert [row[0] for row in rows(told)] == ["h1", "h2", "h3"]
        assert rows(told)[2] == ["h3", "", "disabled ([fire])"]
        by_name = await command("explain", "--dry-run", "--flavor", "m1.nano", "--zone", "nova:h2")
        assert "It would go to h2.\n" in by_name
        assert "No host would take it." in await command(
            "explain", "--dry-run", "--flavor", "42", "--host", "x"
        )
        assert "No host would take it." in await command(
            "explain", "--dry-run", "--flavor", "42", "--zone", "x"
        )
        hinted = ("--hint", "different_host=a", "--hint", "different_host=b", "--hint", "query=[]")
        assert "It would go to h1.\n" in await command("explain", "--dry-run", "--flavor", "42", *hinted)
        after = await cloud.db.read(lambda tx: [instances.uuids_by_host(tx, name) for name in ("h1", "h2")])
        assert after == before


async def test_many_that_are_only_thought_of(tmp_path: Path, command: Command) -> None:
    little: dict[str, dict[str, object]] = {**OPTIONS, "fake": {"vcpus": 20, "memory_mb": 2_000_000}}
    async with embedded(tmp_path / "state", **little) as cloud:
        assert cloud.example_image
        dry = ("explain", "--dry-run", "--flavor", "42", "--count")
        assert "\n7 of 7 would be placed:\n  7 on h1\n" in await command(*dry, "7")
        assert "\n80 of 90 would be placed:\n  80 on h1\n" in await command(*dry, "90")  # 20 CPUs, four times


async def test_what_cannot_be_explained(tmp_path: Path, command: Command) -> None:
    async with running(tmp_path):
        for words, why in (
            ((), "Name a SERVER"),
            (("x", "--dry-run", "--flavor", "42"), "Name a SERVER"),
            (("--dry-run",), "needs a --flavor"),
            (("--dry-run", "--flavor", "none"), "There is no flavor 'none'"),
            (("--dry-run", "--flavor", "42", "--image", "none"), "There is no image 'none'"),
            (("--dry-run", "--flavor", "42", "--hint", "x"), "is not of the form key=value"),
            (("--dry-run", "--flavor", "42", "--zone", "a:b:c:d"), "Invalid availability zone"),
            (("--dry-run", "--flavor", "42", "--count", "0"), "0 is not in the range"),
        ):
            assert why in await command("explain", *words, fails=True), words


async def test_the_operators_options_are_heeded(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "nova.conf"
    path.write_text("[filter_scheduler]\nenabled_filters = IsolatedHostsFilter\nisolated_hosts = h1\n")
    async with running(tmp_path) as cloud:
        await disable(cloud, "h2", "fire")
        told = await command("explain", "--dry-run", "--flavor", "42", "--config-file", str(path))
        assert "IsolatedHostsFilter refuses 1.\nIt would go to h2.\n" in told
        path.write_text("[filter_scheduler]\nenabled_filters = LuckFilter\n")
        wrong = ("explain", "--dry-run", "--flavor", "42", "--config-file", str(path))
        assert "there is no 'LuckFilter'" in await command(*wrong, fails=True)
