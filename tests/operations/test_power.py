"""Power synchronisation: what a guest does by itself, and what becomes of its server then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from kilonova.app import EmbeddedCloud
from kilonova.clock import SECOND, SystemClock
from kilonova.db import instances
from kilonova.db.engine import Database
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.errors import Unreachable
from kilonova.host_parts import agent_options
from kilonova.journal import actions, attention
from kilonova.journal.model import ActionRow
from kilonova.model.instance import Instance
from kilonova.model.states import POWER_NAMES, VM_STATES, Power, Task, Vm
from kilonova.operations import power, start
from kilonova.operations.cloud import Cloud
from kilonova.operations.stop import StopParams
from kilonova.rpc.messages import Command, Observed
from kilonova.testing.clock import VirtualClock
from kilonova.testing.embedded import embedded, fake_driver, member, server, settings_for, settled
from tests.api.compute import parts
from tests.crash.scenes import boot

# As Nova has it: the power states for which a server of that vm_state is stopped, if it is idle.
STOPPED_FOR = {
    Vm.ACTIVE: {Power.SHUTDOWN, Power.CRASHED, Power.SUSPENDED},
    Vm.STOPPED: {Power.RUNNING, Power.PAUSED, Power.SUSPENDED},
    Vm.PAUSED: {Power.SHUTDOWN, Power.CRASHED},
}


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    database = SqliteDatabase(tmp_path / "kilonova.db", SystemClock())
    await bring_up(database)
    yield database
    await database.close()


@pytest.fixture
async def idle(db: Database, tmp_path: Path) -> Cloud:
    """A cloud in which operations are written down and not begun."""
    return await parts.small_cloud(db, tmp_path)


async def found(cloud: Cloud, uuid: str) -> Instance:
    instance = await cloud.db.read(lambda tx: instances.show_any(tx, uuid))
    assert instance is not None
    return instance


async def submitted(cloud: Cloud, uuid: str) -> list[ActionRow]:
    opened = await cloud.db.read(attention.open_actions)
    return [action for action in opened if action.instance_uuid == uuid]


def seen(uuid: str, state: int, generation: int = 10) -> Observed:
    return Observed(uuid=uuid, power_state=state, generation=generation)


@pytest.mark.capability("PS-2")
@pytest.mark.parametrize("vm_state", [state for state in VM_STATES if state != Vm.DELETED])
async def test_the_table(idle: Cloud, vm_state: str) -> None:
    assert set(POWER_NAMES) == {0, 1, 3, 4, 6, 7}
    for state in POWER_NAMES:
        made = await parts.server(idle, "p1", vm_state=vm_state, power_state=99)
        await power.observed(idle, seen(made.uuid, state), parts.HOST)
        now = await found(idle, made.uuid)
        assert (now.power_state, now.power_generation) == (state, 10)  # in every case
        assert now.vm_state == vm_state
        stops = state in STOPPED_FOR.get(vm_state, set())
        assert now.task_state == (Task.POWERING_OFF if stops else None), POWER_NAMES[state]
        assert [each.operation for each in await submitted(idle, made.uuid)] == ["stop"] * stops


@pytest.mark.capability("API-16")
async def test_a_stop_by_power_is_an_action_of_the_owner(idle: Cloud) -> None:
    made = await parts.server(idle, "p1", progress=50)
    await power.observed(idle, seen(made.uuid, Power.SHUTDOWN), parts.HOST)
    (action,) = await submitted(idle, made.uuid)
    assert (action.action, action.user_id, action.project_id) == ("stop", made.user_id, "p1")
    assert action.request_id.startswith("req-")
    assert (await found(idle, made.uuid)).progress == 0
    assert msgspec.json.decode(action.params, type=StopParams) == StopParams(clean=False)


async def test_a_busy_server_is_left_alone(idle: Cloud) -> None:
    made = await parts.server(idle, "p1", task_state=Task.REBOOTING)
    await power.observed(idle, seen(made.uuid, Power.SHUTDOWN), parts.HOST)
    now = await found(idle, made.uuid)
    assert (now.power_state, now.task_state) == (Power.SHUTDOWN, Task.REBOOTING)
    assert await submitted(idle, made.uuid) == []


async def test_a_report_that_was_overtaken_changes_nothing(idle: Cloud) -> None:
    made = await parts.server(idle, "p1")
    await power.observed(idle, seen(made.uuid, Power.RUNNING, 20), parts.HOST)
    before = await found(idle, made.uuid)
    for generation in (19, 20):
        await power.observed(idle, seen(made.uuid, Power.SHUTDOWN, generation), parts.HOST)
        assert await found(idle, made.uuid) == before


@pytest.mark.capability("MG-LCE-6")
async def test_guests_of_nobody_are_ignored(idle: Cloud) -> None:
    await power.observed(idle, seen("00000000-0000-4000-8000-000000000001", Power.SHUTDOWN), parts.HOST)
    made = await parts.server(idle, "p1")
    await idle.db.write(lambda tx: instances.mark_deleted(tx, made.uuid, 1))
    before = await found(idle, made.uuid)
    await power.observed(idle, seen(made.uuid, Power.RUNNING), parts.HOST)
    assert await found(idle, made.uuid) == before
    assert await idle.db.read(attention.open_actions) == []


# ---- with a whole cloud ----


async def active(cloud: EmbeddedCloud) -> str:
    uuid = await boot(cloud)
    assert (await settled(cloud, uuid)).vm_state == Vm.ACTIVE
    return uuid


async def becomes(cloud: EmbeddedCloud, uuid: str, vm_state: str, power_state: int) -> Instance:
    """The server, once it is so and idle.  Raises TimeoutError."""
    async with asyncio.timeout(30):
        while True:
            now = await server(cloud, uuid)
            if (now.vm_state, now.task_state, now.power_state) == (vm_state, None, power_state):
                return now
            await asyncio.sleep(0.005)


async def names(cloud: EmbeddedCloud, uuid: str) -> list[str]:
    return [each.action for each in await cloud.db.read(lambda tx: actions.list_actions(tx, uuid))]


async def test_a_server_whose_guest_goes_off_is_stopped_and_can_be_started(cloud: EmbeddedCloud) -> None:
    uuid = await active(cloud)
    fake_driver(cloud).turn_off(uuid)
    await becomes(cloud, uuid, Vm.STOPPED, Power.SHUTDOWN)
    assert await names(cloud, uuid) == ["stop", "create"]
    await start.submit(cloud.cloud, member(cloud), uuid)
    await becomes(cloud, uuid, Vm.ACTIVE, Power.RUNNING)


async def test_a_stopped_server_whose_guest_runs_is_stopped_again(cloud: EmbeddedCloud) -> None:
    uuid = await active(cloud)
    driver = fake_driver(cloud)
    driver.turn_off(uuid)
    await becomes(cloud, uuid, Vm.STOPPED, Power.SHUTDOWN)
    driver.guest_file.put(uuid, Power.RUNNING)
    assert driver._event is not None
    driver._event(uuid, Power.RUNNING)
    async with asyncio.timeout(30):
        while await names(cloud, uuid) != ["stop", "stop", "create"]:
            await asyncio.sleep(0.005)
    await becomes(cloud, uuid, Vm.STOPPED, Power.SHUTDOWN)
    assert driver.guest_file.state(uuid) == Power.SHUTDOWN


async def test_a_guest_that_dies_as_its_server_becomes_active_is_noticed(
    cloud: EmbeddedCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = cloud.agent
    assert agent is not None
    resume = agent.resume

    async def resume_and_die(command: Command, uuid: str) -> Observed:
        observed = await resume(command, uuid)
        fake_driver(cloud).turn_off(uuid)
        host = (await server(cloud, uuid)).host or ""
        await power.observed(cloud.cloud, await agent.observe(uuid), host)  # before the step is committed
        return observed

    monkeypatch.setattr(agent, "resume", resume_and_die)
    uuid = await boot(cloud)
    await becomes(cloud, uuid, Vm.STOPPED, Power.SHUTDOWN)
    assert await names(cloud, uuid) == ["stop", "create"]


@pytest.mark.capability("MG-GEN-12")
async def test_looking_finds_what_no_event_has_told(cloud: EmbeddedCloud) -> None:
    gone, off, fine, deaf = [await active(cloud) for _ in range(4)]
    guests = fake_driver(cloud).guest_file
    guests.drop(gone)
    guests.put(off, Power.SHUTDOWN)
    guests.put(deaf, Power.SHUTDOWN)
    agent = cloud.agent
    assert agent is not None
    observe = agent.observe

    async def look(uuid: str) -> Observed:
        if uuid == deaf:
            raise Unreachable("no answer")
        return await observe(uuid)

    agent.observe = look  # type: ignore[method-assign]
    before = await server(cloud, fine)
    await power.synchronise(cloud.cloud, "h1")
    await becomes(cloud, off, Vm.STOPPED, Power.SHUTDOWN)
    assert (await server(cloud, gone)).power_state == Power.NOSTATE  # and it is not stopped for that
    assert await names(cloud, gone) == ["create"]
    assert await server(cloud, fine) == before  # what agrees is not written again
    assert (await server(cloud, deaf)).power_state == Power.RUNNING


async def settled_on(clock: VirtualClock, cloud: EmbeddedCloud, uuid: str, vm_state: str) -> None:
    """Let the clock run until the server is so, and idle."""
    async with asyncio.timeout(60):
        while True:
            now = await server(cloud, uuid)
            if (now.vm_state, now.task_state) == (vm_state, None):
                return
            clock.advance(1)


async def test_the_cloud_looks_by_itself_from_time_to_time(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with embedded(tmp_path / "state", clock, DEFAULT={"host": "h1"}) as cloud:
        uuid = await active(cloud)
        fake_driver(cloud).guest_file.put(uuid, Power.SHUTDOWN)
        begun = clock.now()
        await settled_on(clock, cloud, uuid, Vm.STOPPED)
        assert clock.now() - begun >= 600 * SECOND


async def test_a_host_that_was_off_has_its_servers_stopped(tmp_path: Path) -> None:
    async with embedded(tmp_path / "state", DEFAULT={"host": "h1"}) as cloud:
        uuid, gone = await active(cloud), await active(cloud)
        guests = fake_driver(cloud).guest_file
        guests.put(uuid, Power.SHUTDOWN)
        guests.drop(gone)
    async with embedded(tmp_path / "state", DEFAULT={"host": "h1"}) as cloud:
        await becomes(cloud, uuid, Vm.STOPPED, Power.SHUTDOWN)
        assert (await server(cloud, gone)).vm_state == Vm.ACTIVE


@pytest.mark.capability("MG-LCE-5")
async def test_without_events_guests_that_went_off_are_found_by_looking(tmp_path: Path) -> None:
    options: dict[str, dict[str, object]] = {
        "DEFAULT": {"host": "h1"},
        "workarounds": {"handle_virt_lifecycle_events": False},
    }
    async with embedded(tmp_path / "state", **options) as cloud:
        uuid = await active(cloud)
        fake_driver(cloud).turn_off(uuid)
        await asyncio.sleep(0.1)
        found = await server(cloud, uuid)
        assert (found.vm_state, found.power_state) == (Vm.ACTIVE, Power.RUNNING)
        await power.synchronise(cloud.cloud, "h1")
        await becomes(cloud, uuid, Vm.STOPPED, Power.SHUTDOWN)


@pytest.mark.capability("MG-LCE-5")
@pytest.mark.parametrize(
    ("heard", "interval", "warned"),
    [(True, 600, False), (True, -1, False), (False, 600, False), (False, 0, False), (False, -1, True)],
)
def test_who_neither_hears_nor_looks_is_warned(
    tmp_path: Path, heard: bool, interval: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_for(
        tmp_path,
        DEFAULT={"sync_power_state_interval": interval},
        workarounds={"handle_virt_lifecycle_events": heard},
    )
    assert agent_options(settings).hears_events is heard
    assert ("nobody notices" in capsys.readouterr().out) is warned
