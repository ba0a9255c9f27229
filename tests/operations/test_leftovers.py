"""What hosts owe: written down, taken from them when they are heard, never from a server that is theirs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kilonova.agent.fences import Fences
from kilonova.db import leftovers
from kilonova.db.leftovers import Leftover
from kilonova.desk import Desks
from kilonova.errors import HostFault, NotFound, TryAgain
from kilonova.model.port import Vif
from kilonova.model.states import Power, Vm
from kilonova.operations import create, delete, reboot, shelve, stop, unshelve
from kilonova.operations.leftovers import Clearing, clear
from kilonova.operations.requests import CreateServer
from kilonova.rpc.messages import Command
from kilonova.testing.embedded import member, server, settled
from tests.crash.broken import Gate, UndoGate, failing
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.test_hosts import api_of, known


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Hosts]:
    async with opened(tmp_path / "state") as made:
        yield made


def owed(three: Hosts, uuid: str, **more: object) -> Leftover:
    values = {"host": "h1", "instance_uuid": uuid, "created_at": three.cloud.clock.now(), **more}
    return Leftover(**values)  # type: ignore[arg-type]


async def owe(three: Hosts, leftover: Leftover) -> Leftover:
    await three.cloud.db.write(lambda tx: leftovers.owe(tx, leftover))
    found = await three.cloud.db.read(lambda tx: leftovers.find(tx, leftover.host, leftover.instance_uuid))
    assert found is not None
    return found


# ---- what is written down ----


async def test_what_is_owed_twice_is_owed_once_with_all_that_was_noted(three: Hosts) -> None:
    one, two = (Vif(port_id=f"p{number}", mac="", network_id="n", network_name="n") for number in (1, 2))
    first = owed(three, "u", migration_uuid="m", action=1, vifs=(one,), keep_files=True)
    await owe(three, first)
    changed = replace(two, tag="new")
    found = await owe(three, owed(three, "u", action=2, vifs=(changed,)))
    assert (found.migration_uuid, found.action, found.keep_files) == ("m", 2, False)
    assert found.vifs == (changed, one)
    assert await three.cloud.db.read(leftovers.hosts) == ["h1"]
    assert await three.cloud.db.read(lambda tx: leftovers.owing(tx, "u")) == ["h1"]


async def test_only_what_was_seen_is_settled(three: Hosts) -> None:
    """What was noted meanwhile has not been taken away."""
    first = await owe(three, owed(three, "u", action=1))
    await owe(three, owed(three, "u", action=2))
    assert not await three.cloud.db.write(lambda tx: leftovers.settle(tx, first))
    assert not await clear(three.cloud.cloud, first)
    (second,) = await three.owed("h1")
    assert await clear(three.cloud.cloud, second)
    assert await three.owed("h1") == []
    assert not await clear(three.cloud.cloud, second)


async def test_who_comes_late_takes_nothing_from_a_server_that_is_on_its_way_back(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.evacuate(uuid)
    (stale,) = await three.owed("h1")
    await three.come_back("h1")
    await three.cleared()
    await three.lose_power("h2")
    gate = Gate(three.cloud, "evacuate", "switch")
    await three.ask(uuid, host="h1")
    await gate.wait()
    assert not await clear(three.cloud.cloud, stale)
    gate.open()
    assert (await settled(three.cloud, uuid)).vm_state == Vm.ACTIVE
    await three.come_back("h2")
    await three.cleared()
    await three.assert_only_on(uuid, "h1")


# ---- what is taken away, and what not ----


async def test_hosts_that_give_no_signs_are_not_asked(three: Hosts) -> None:
    """They might take long to answer."""
    uuid = await three.boot()
    await three.set_seen("h1", 1)  # it would answer
    await three.evacuate(uuid)
    assert await three.cleared() == 0 and len(await three.owed("h1")) == 1
    await three.set_seen("h1", three.cloud.clock.now())
    assert await three.cleared() == 1


async def test_a_server_that_is_the_hosts_own_by_now_is_let_alone(three: Hosts) -> None:
    uuid = await three.boot()
    await owe(three, owed(three, uuid, vifs=(await server(three.cloud, uuid)).vifs))
    assert await three.cleared() == 1
    await three.assert_only_on(uuid, "h1")
    assert await three.owed("h1") == []


@pytest.mark.parametrize("verb", ["undefine", "discard"])
@pytest.mark.parametrize("error", [HostFault("busy"), TryAgain("later"), RuntimeError("odd")])
async def test_what_fails_is_tried_again(three: Hosts, verb: str, error: Exception) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.evacuate(uuid)
    await three.come_back("h1")
    three.hosts["h1"].driver.faults.add(verb, error)
    assert await three.cleared() == 0
    assert [each.instance_uuid for each in await three.owed("h1")] == [uuid]
    assert await three.cleared() == 1
    await three.assert_only_on(uuid, "h2")


async def test_a_controller_dies_between_any_two_things(three: Hosts) -> None:
    """Whatever it has done by then, the next look does the rest."""
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.evacuate(uuid)
    await three.come_back("h1")
    for verb in ("undefine", "discard"):
        faults = three.hosts["h1"].driver.faults
        faults.hold(verb)
        dying = asyncio.create_task(Clearing(three.cloud.cloud).look())
        await asyncio.sleep(0.1)
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        faults.release(verb)
        assert len(await three.owed("h1")) == 1
    await asyncio.gather(three.cleared(), Clearing(three.cloud.cloud).look())
    await three.assert_only_on(uuid, "h2")
    assert await three.complaints() == []


async def test_a_host_that_hangs_holds_up_no_other(three: Hosts) -> None:
    first, second = await three.boot(host="h1"), await three.boot(host="h2")
    for name in ("h1", "h2"):
        await three.lose_power(name)
    for uuid in (first, second):
        assert (await three.evacuate(uuid)).host == "h3"
    three.hosts["h1"].driver.faults.hold("undefine")
    for name in ("h1", "h2"):
        await three.come_back(name)
    assert three.cloud.clearing is not None
    three.cloud.clearing.soon()
    async with asyncio.timeout(20):
        while await three.owed("h2"):
            await asyncio.sleep(0.01)
    assert len(await three.owed("h1")) == 1
    three.hosts["h1"].driver.faults.release("undefine")
    async with asyncio.timeout(20):
        while await three.owed("h1"):
            await asyncio.sleep(0.01)
    assert await three.complaints() == []


async def test_hosts_are_looked_at_again_and_again(tmp_path: Path) -> None:
    """Nobody says that it is back."""
    async with opened(tmp_path / "state") as three:
        uuid = await three.boot()
        await three.lose_power("h1")
        await three.evacuate(uuid)
        await three.come_back("h1")
        async with asyncio.timeout(20):
            while await three.owed("h1"):
                await asyncio.sleep(0.05)
        await three.assert_only_on(uuid, "h2")


@pytest.mark.capability("MG-INIT-5", "MG-INIT-6")
async def test_what_a_host_says_of_a_guest_that_has_left_changes_nothing(
    three: Hosts, capsys: pytest.CaptureFixture[str]
) -> None:
    uuid = await three.boot()
    await three.cut_off("h1")
    await three.evacuate(uuid)
    before = await server(three.cloud, uuid)
    await three.hosts["h1"].agent.tell_of_guests()  # as one that starts does
    three.hosts["h1"].driver.turn_off(uuid)
    await asyncio.sleep(0.1)
    after = await server(three.cloud, uuid)
    assert (after.vm_state, after.task_state, after.power_state) == (Vm.ACTIVE, None, Power.RUNNING)
    assert after == before
    assert "a guest is of no server of this host" in capsys.readouterr().out


# ---- deletions ----


@pytest.mark.capability("API-97")
async def test_a_server_of_a_host_that_is_down_is_deleted_at_once(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid)).vm_state == Vm.DELETED
    there = await three.everywhere(uuid)
    assert (there.bound, there.held) == (set(), set())
    assert there.guests == {"h1": Power.SHUTDOWN}
    await three.come_back("h1")
    await three.cleared()
    assert three.hosts["h1"].empty
    assert await three.complaints() == []


async def test_a_host_that_is_declared_down_is_not_asked(three: Hosts) -> None:
    uuid = await three.boot()
    three.hosts["h1"].driver.faults.hold("undefine")  # it would never answer
    await three.force_down("h1")
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid)).vm_state == Vm.DELETED
    three.hosts["h1"].driver.faults.release("undefine")
    await three.cleared()
    assert three.hosts["h1"].empty


@pytest.mark.parametrize("step", ["destroy", "unplug", "discard"])
async def test_the_host_goes_down_during_a_deletion(three: Hosts, step: str) -> None:
    uuid = await three.boot()
    gate = Gate(three.cloud, "delete", step)
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    await gate.wait()
    await three.lose_power("h1")
    gate.open()
    assert (await settled(three.cloud, uuid, 60)).vm_state == Vm.DELETED
    assert len(await three.owed("h1")) == 1
    await three.come_back("h1")
    await three.cleared()
    assert three.hosts["h1"].empty
    assert await three.complaints() == []


@pytest.mark.parametrize("step", ["destroy", "unplug", "discard"])
async def test_the_host_goes_down_while_a_shelved_server_leaves_it(three: Hosts, step: str) -> None:
    uuid = await three.boot()
    gate = Gate(three.cloud, "shelve_and_offload", step)
    await shelve.submit(three.cloud.cloud, member(three.cloud), uuid)
    await gate.wait()
    await three.lose_power("h1")
    gate.open()
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.task_state, found.host) == (Vm.SHELVED_OFFLOADED, None, None)
    there = await three.everywhere(uuid)
    assert (there.bound, there.held) == ({""}, set())
    assert len(await three.owed("h1")) == 1
    await unshelve.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid, 60)).host == "h2"
    await three.come_back("h1")
    await three.cleared()
    assert three.hosts["h1"].empty
    assert await three.complaints() == []


@pytest.mark.parametrize("step", ["prepare", "plug", "start", "resume"])
async def test_a_host_goes_down_under_a_server_that_comes_back_to_it(three: Hosts, step: str) -> None:
    uuid = await three.boot()
    await shelve.submit(three.cloud.cloud, member(three.cloud), uuid)
    await settled(three.cloud, uuid, 60)
    gate = Gate(three.cloud, "unshelve_offloaded", step)
    await unshelve.submit(three.cloud.cloud, member(three.cloud), uuid)
    await gate.wait()
    await three.lose_power("h1")
    gate.open()
    found = await settled(three.cloud, uuid, 60)
    assert (found.vm_state, found.host) == (Vm.ACTIVE, "h2")
    assert [each.instance_uuid for each in await three.owed("h1")] == [uuid]
    await three.come_back("h1")
    await three.cleared()
    assert three.hosts["h1"].empty
    assert await three.complaints() == []


async def test_a_host_that_only_does_not_answer_is_waited_for(three: Hosts) -> None:
    uuid = await three.boot()
    three.silence("h1")
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    await asyncio.sleep(0.5)
    assert (await server(three.cloud, uuid)).task_state == "deleting"
    assert await three.owed("h1") == []
    await three.come_back("h1")
    assert (await settled(three.cloud, uuid, 60)).vm_state == Vm.DELETED
    assert three.hosts["h1"].empty and await three.owed("h1") == []


@pytest.mark.parametrize("act", [stop.submit, reboot.submit])
async def test_what_hangs_on_a_dead_host_gives_way_to_a_deletion(three: Hosts, act: object) -> None:
    uuid = await three.boot()
    three.silence("h1")
    more = {"hard": True} if act is reboot.submit else {}
    await act(three.cloud.cloud, member(three.cloud), uuid, **more)  # type: ignore[operator]
    await three.lose_power("h1")
    await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid, 60)).vm_state == Vm.DELETED
    await three.come_back("h1")
    await three.cleared()
    assert three.hosts["h1"].empty


# ---- builds ----


@pytest.mark.parametrize("step", ["prepare", "plug", "start", "resume"])
async def test_a_host_goes_down_under_a_new_server(three: Hosts, step: str) -> None:
    gate = Gate(three.cloud, "create", step)
    request = CreateServer(name="s", flavor_id="42", image_id=three.cloud.example_image)
    (made,) = await create.submit(three.cloud.cloud, member(three.cloud), request)
    await gate.wait()
    await three.lose_power("h1")
    gate.open()
    found = await settled(three.cloud, made.uuid, 60)
    assert (found.vm_state, found.host, found.fault) == (Vm.ACTIVE, "h2", None)
    await three.come_back("h1")
    await three.cleared()
    await three.assert_only_on(made.uuid, "h2")
    assert await three.complaints() == []


@pytest.mark.parametrize("step", ["prepare", "plug", "start"])
async def test_a_host_goes_down_while_a_build_is_undone(three: Hosts, step: str) -> None:
    """And the server is deleted: nothing waits for the host."""
    failing(three.cloud, "create", "resume", HostFault("ordered"))
    gate = UndoGate(three.cloud, "create", step)
    request = CreateServer(name="s", flavor_id="42", image_id=three.cloud.example_image)
    (made,) = await create.submit(three.cloud.cloud, member(three.cloud), request)
    await gate.wait()
    await three.lose_power("h1")
    await delete.submit(three.cloud.cloud, member(three.cloud), made.uuid)
    gate.open()
    assert (await settled(three.cloud, made.uuid, 60)).vm_state == Vm.DELETED
    await three.come_back("h1")
    await three.cleared()
    assert three.hosts["h1"].empty
    assert await three.complaints() == []


# ---- services ----


async def test_a_host_is_not_declared_up_before_it_is_cleared(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.force_down("h1")
    await three.evacuate(uuid)
    service, api = await known(three.cloud, "h1"), api_of(three.cloud)
    assert service is not None
    path, up = f"/os-services/{service.service_uuid}", {"forced_down": False}
    refused = await api("PUT", path, up, v=53)
    assert refused.status == 400
    assert refused.fault.startswith("The host h1 has not yet been cleared of 1 servers")
    assert (await api("PUT", path, {"forced_down": True}, v=53)).status == 200
    await three.come_back("h1")
    await three.cleared()  # also while it is declared down
    assert (await api("PUT", path, up, v=53)).status == 200
    await three.assert_only_on(uuid, "h2")


async def test_a_host_that_is_taken_out_of_the_cloud_gives_nothing_more(three: Hosts) -> None:
    uuid = await three.boot()
    await three.lose_power("h1")
    await three.evacuate(uuid)
    service = await known(three.cloud, "h1")
    assert service is not None
    gone = await api_of(three.cloud)("DELETE", f"/os-services/{service.service_uuid}", v=53)
    assert gone.status == 204
    assert (await three.everywhere(uuid)).held_by_moves == set()
    providers = {each.uuid for each in await three.cloud.placement.providers()}
    assert service.compute_id not in providers
    report = await three.hosts["h1"].driver.report()
    await three.cloud.register(report)  # it has come back after all
    await three.come_back("h1")
    await three.cleared()
    await three.assert_only_on(uuid, "h2")
    assert await three.complaints() == []


# ---- late commands, and what hosts ask ----


class Guarded:
    """A host's agent behind its fences, as on the bus."""

    def __init__(self, agent: Any, fences: Fences) -> None:
        self._agent = agent
        self._fences = fences

    def __getattr__(self, verb: str) -> Any:
        inner = getattr(self._agent, verb)

        async def guarded(command: Command, uuid: str, *more: Any, **named: Any) -> Any:
            self._fences.check(command, uuid)
            return await inner(command, uuid, *more, **named)

        return guarded


@pytest.mark.parametrize("later", [0, 1])
async def test_what_a_later_operation_has_brought_is_not_taken(
    three: Hosts, tmp_path: Path, later: int
) -> None:
    """But what the operation itself has done there under whatever epoch does not hinder the clearing."""
    uuid = await three.boot()
    await three.cut_off("h1")
    await three.evacuate(uuid)
    (row,) = await three.owed("h1")
    fences = Fences(tmp_path / "fences.db", three.cloud.clock)
    fences.check(Command(id="x", action=row.action + later, epoch=7), uuid)
    await three.come_back("h1")
    three.cloud.local._hands["h1"] = Guarded(three.hosts["h1"].agent, fences)  # type: ignore[assignment]
    assert await three.cleared() == 1 - later
    fences.close()
    assert bool(three.hosts["h1"].driver.guest_file.state(uuid)) == bool(later)
    assert len(await three.owed("h1")) == later


async def test_a_host_that_reports_or_has_strange_guests_is_looked_at(three: Hosts) -> None:
    words: list[str] = []
    desks = Desks().serve(
        three.cloud.cloud, three.cloud.image, three.cloud.network, lambda: words.append("w")
    )
    uuid = await three.boot()
    desk = desks.desk("h1")
    own = await three.hosts["h1"].agent.observe(uuid)
    await desk.observed((own,))
    assert words == []
    await desk.observed((replace(own, uuid="strange"),))
    assert words == ["w"]
    report = replace(await three.hosts["h1"].driver.report(), version="1.2")
    await desk.hello(report, "a" * 32)
    assert words == ["w", "w"]


async def test_a_host_gets_the_image_of_a_server_that_is_on_its_way(three: Hosts) -> None:
    uuid = await three.boot()
    desks = Desks().serve(three.cloud.cloud, three.cloud.image, three.cloud.network)
    image = (await server(three.cloud, uuid)).image
    assert image is not None
    await three.lose_power("h1")
    gate = Gate(three.cloud, "evacuate", "prepare")
    await three.ask(uuid)
    await gate.wait()
    assert len(await desks.desk("h2").image(image.id, 0)) > 0
    with pytest.raises(NotFound):
        await desks.desk("h3").image(image.id, 0)
    gate.open()
    assert (await settled(three.cloud, uuid)).host == "h2"
