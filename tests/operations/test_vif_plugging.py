"""Which ports are waited for, how long, and what becomes of a guest whose ports nobody wires."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from kilonova.app import EmbeddedCloud
from kilonova.clock import SECOND
from kilonova.db import instances
from kilonova.model.instance import Instance
from kilonova.model.migration import Status
from kilonova.model.port import Vif
from kilonova.model.states import Power, Task, Vm
from kilonova.operations import external_event, reboot, resize, start, stop
from kilonova.rpc.moves import LiveOutcome, LivePlan
from kilonova.services.network import bindings
from kilonova.testing.embedded import embedded, fake_driver, leaks, member, server, settled
from kilonova.testing.simulated_hosts import first_host
from tests.crash.broken import Gate
from tests.crash.scenes import boot
from tests.operations.live_hosts import live


@contextlib.asynccontextmanager
async def cloud_of(tmp_path: Path, **options: object) -> AsyncIterator[EmbeddedCloud]:
    everything: dict[str, object] = {"host": "h1", "allow_resize_to_same_host": True, **options}
    async with embedded(tmp_path / "state", DEFAULT=everything) as cloud:
        yield cloud


def silent(cloud: EmbeddedCloud) -> None:
    """Nobody wires a port any more."""

    async def nothing(vif: Vif) -> None:
        return None

    first_host(cloud).plugger._on_plugged = nothing


async def booted(cloud: EmbeddedCloud) -> Instance:
    return await settled(cloud, await boot(cloud))


@pytest.mark.capability("MG-VIF-4", "MG-BLD-13")
async def test_a_guest_whose_port_is_not_wired_in_time_is_taken_back(tmp_path: Path) -> None:
    async with cloud_of(tmp_path, vif_plugging_timeout=1) as cloud:
        silent(cloud)
        began = cloud.clock.now()
        found = await booted(cloud)
        assert cloud.clock.now() - began >= SECOND
        assert found.vm_state == Vm.ERROR and found.fault is not None
        assert "did not wire the ports" in found.fault.message
        assert first_host(cloud).empty  # no guest, no file, no port
        assert await leaks(cloud) == []


@pytest.mark.capability("MG-VIF-4")
async def test_a_guest_runs_without_its_port_where_that_is_not_fatal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with cloud_of(tmp_path, vif_plugging_timeout=1, vif_plugging_is_fatal=False) as cloud:
        silent(cloud)
        found = await booted(cloud)
        assert (found.vm_state, found.power_state, found.fault) == (Vm.ACTIVE, Power.RUNNING, None)
        assert "a guest goes on without its ports" in capsys.readouterr().out


@pytest.mark.capability("MG-VIF-4", "MG-GEN-10")
@pytest.mark.parametrize("fatal", [True, False])
async def test_an_event_that_says_failed_ends_the_wait_at_once(tmp_path: Path, fatal: bool) -> None:
    async with cloud_of(tmp_path, vif_plugging_timeout=300, vif_plugging_is_fatal=fatal) as cloud:
        silent(cloud)
        gate = Gate(cloud, "create", "wired")
        uuid = await boot(cloud)
        await gate.wait()
        (vif,) = (await server(cloud, uuid)).vifs
        await external_event.deliver(cloud.cloud, uuid, "network-vif-plugged", vif.port_id, "failed")
        gate.open()
        found = await settled(cloud, uuid)
        assert found.vm_state == (Vm.ERROR if fatal else Vm.ACTIVE)


@pytest.mark.capability("MG-VIF-1")
async def test_nothing_is_waited_for_with_a_timeout_of_zero(tmp_path: Path) -> None:
    async with cloud_of(tmp_path, vif_plugging_timeout=0) as cloud:
        silent(cloud)
        assert (await booted(cloud)).vm_state == Vm.ACTIVE


async def _start(cloud: EmbeddedCloud, uuid: str) -> None:
    await stop.submit(cloud.cloud, member(cloud), uuid)
    assert (await settled(cloud, uuid)).vm_state == Vm.STOPPED
    await start.submit(cloud.cloud, member(cloud), uuid)


async def _reboot(cloud: EmbeddedCloud, uuid: str) -> None:
    await reboot.submit(cloud.cloud, member(cloud), uuid, hard=True)


async def _resize_here(cloud: EmbeddedCloud, uuid: str) -> None:
    """Its ports are ACTIVE and stay so."""
    await resize.resize(cloud.cloud, member(cloud), await server(cloud, uuid), "1")


@pytest.mark.capability("MG-VIF-1")
@pytest.mark.parametrize(
    ("verb", "vm_state"), [(_start, Vm.ACTIVE), (_reboot, Vm.ACTIVE), (_resize_here, Vm.RESIZED)]
)
async def test_ports_that_were_wired_here_are_not_waited_for_again(
    tmp_path: Path, verb: Callable[[EmbeddedCloud, str], Awaitable[None]], vm_state: str
) -> None:
    async with cloud_of(tmp_path, vif_plugging_timeout=300) as cloud:
        uuid = (await booted(cloud)).uuid
        silent(cloud)
        await verb(cloud, uuid)
        found = await settled(cloud, uuid)
        assert (found.vm_state, found.fault) == (vm_state, None)
        assert fake_driver(cloud).guest_file.state(uuid) == Power.RUNNING


@pytest.mark.capability("OVS-23", "MG-LM-13", "MG-LM-15")
@pytest.mark.parametrize("hybrid", [True, False])
async def test_a_guest_is_sent_when_its_ports_are_wired_at_the_destination(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hybrid: bool
) -> None:
    """Also those of which Nova's source expects the event at plug time; ours are all wired before."""
    whole = bindings.binding

    def bound(host: str, vnic_type: str, details: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        kind, known = whole(host, vnic_type, details)
        return kind, {**known, "ovs_hybrid_plug": hybrid}

    monkeypatch.setattr(bindings, "binding", bound)
    plugged, sent = asyncio.Event(), asyncio.Event()
    async with live(tmp_path / "state", "h2", DEFAULT={"vif_plugging_timeout": 60}) as two:
        uuid = await two.boot()

        async def silent(vif: Vif) -> None:
            assert vif.details["ovs_hybrid_plug"] is hybrid
            plugged.set()

        two.hosts["h2"].plugger._on_plugged = silent
        send = two.live("h1").send

        async def seen(guest: Any, plan: LivePlan) -> LiveOutcome:
            sent.set()
            return await send(guest, plan)

        monkeypatch.setattr(two.live("h1"), "send", seen)
        migration = await two.begin(uuid)
        async with asyncio.timeout(30):
            await plugged.wait()
        await asyncio.sleep(0.3)
        assert not sent.is_set()
        (vif,) = (await server(two.cloud, uuid)).vifs
        await two.cloud.network.port_up(vif.port_id, "h2")
        found = await settled(two.cloud, uuid, 15)
        assert sent.is_set() and found.host == "h2"
        assert (await two.migration(migration)).status == Status.COMPLETED


@pytest.mark.capability("MG-VIF-6")
@pytest.mark.parametrize(
    ("name", "task_state", "warned"),
    [
        ("network-vif-plugged", None, True),
        ("network-vif-unplugged", None, True),
        ("network-vif-unplugged", Task.POWERING_OFF, True),
        ("network-vif-plugged", Task.DELETING, True),
        ("network-vif-unplugged", Task.DELETING, False),
        ("network-vif-unplugged", Task.MIGRATING, False),
    ],
)
async def test_events_that_nobody_waits_for_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, task_state: str | None, warned: bool
) -> None:
    async with cloud_of(tmp_path) as cloud:
        found = await booted(cloud)
        assert "nobody waits for" not in capsys.readouterr().out  # its own was waited for
        await cloud.db.write(
            lambda tx: instances.update(tx, found.uuid, expect_task=None, task_state=task_state)
        )
        await external_event.deliver(cloud.cloud, found.uuid, name, found.vifs[0].port_id)
        assert ("nobody waits for" in capsys.readouterr().out) is warned
        await cloud.db.write(
            lambda tx: instances.update(tx, found.uuid, expect_task=instances.ANY, task_state=None)
        )


@pytest.mark.capability("MG-VIF-6")
async def test_that_something_is_being_done_does_not_make_it_wait_for_an_unplugged_port(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with cloud_of(tmp_path) as cloud:
        found = await booted(cloud)
        gate = Gate(cloud, "stop", "shut_down")
        await stop.submit(cloud.cloud, member(cloud), found.uuid)
        await gate.wait()
        port = found.vifs[0].port_id
        await external_event.deliver(cloud.cloud, found.uuid, "network-vif-unplugged", port)
        assert "nobody waits for" in capsys.readouterr().out
        gate.open()
        assert (await settled(cloud, found.uuid)).vm_state == Vm.STOPPED
