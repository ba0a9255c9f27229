"""Hosts that lose power, are cut off and come back in any order, with servers that are evacuated and deleted
meanwhile: when all are back and cleared nothing is lost, doubled or left."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.errors import Conflict, Invalid
from kilonova.model.instance import Instance
from kilonova.model.states import Power, Vm
from kilonova.operations import delete
from kilonova.testing.embedded import member, server, settled
from tests.operations.dead_hosts import Hosts, opened
from tests.operations.with_volumes import attached

HOSTS = ("h1", "h2", "h3")
EVENTS = st.one_of(
    st.tuples(st.sampled_from(["lose power", "cut off", "come back", "force down"]), st.sampled_from(HOSTS)),
    st.tuples(st.sampled_from(["evacuate", "evacuate and go on", "delete", "boot"]), st.integers(0, 2)),
    st.tuples(st.just("clear"), st.just("")),
)


class Course:
    """What happens, one event after the other."""

    def __init__(self, three: Hosts) -> None:
        self.three = three
        self.servers: list[str] = []
        self.away: set[str] = set()

    async def happen(self, what: str, whom: str | int) -> None:
        three = self.three
        if isinstance(whom, str):
            await self._host(what, whom)
        elif what == "boot":
            if len(self.away) < len(HOSTS) and len(self.servers) < 4:
                await self._boot()
        elif whom < len(self.servers):
            uuid = self.servers[whom]
            if what == "delete":
                await delete.submit(three.cloud.cloud, member(three.cloud), uuid)
                self.servers.remove(uuid)
                await settled(three.cloud, uuid, 60)
            else:
                await self._evacuate(uuid, wait=what == "evacuate")

    async def _host(self, what: str, name: str) -> None:
        three = self.three
        if what == "lose power":
            await three.lose_power(name)
            self.away.add(name)
        elif what == "cut off":
            await three.cut_off(name)
            self.away.add(name)
        elif what == "come back":
            await three.come_back(name)
            await three.force_down(name, False)
            self.away.discard(name)
        elif what == "force down":
            await three.force_down(name)
            self.away.add(name)
        else:
            await three.cleared()

    async def _boot(self) -> None:
        from kilonova.operations import create
        from kilonova.operations.requests import CreateServer

        cloud = self.three.cloud
        cloud.scheduler.forget()
        request = CreateServer(name="s", flavor_id="42", image_id=cloud.example_image)
        (made,) = await create.submit(cloud.cloud, member(cloud), request)
        self.servers.append(made.uuid)
        await settled(cloud, made.uuid, 60)

    async def _evacuate(self, uuid: str, *, wait: bool) -> None:
        try:
            await self.three.ask(uuid)
        except (Conflict, Invalid):
            return
        if wait:
            await settled(self.three.cloud, uuid, 60)

    async def all_come_back(self) -> None:
        for name in HOSTS:
            await self._host("come back", name)
        for uuid in self.servers:
            await settled(self.three.cloud, uuid, 60)
        await self.three.cleared()
        await self.three.cleared()

    async def judge(self) -> None:
        for uuid in self.servers:
            found = await server(self.three.cloud, uuid)
            await self._one(found)
        for name in HOSTS:
            assert await self.three.owed(name) == []
            there = set(self.three.hosts[name].driver.guest_file.everything())
            assert there <= set(self.servers), f"{name} has guests of nobody"
        assert await self.three.misplaced_volumes() == []

    async def _one(self, found: Instance) -> None:
        there = await self.three.everywhere(found.uuid)
        assert found.task_state is None
        if found.host is None:  # no host was left when it was made
            assert found.vm_state == Vm.ERROR
            assert not there.guests and not there.plugged and not there.held and not there.bound
            return
        assert set(there.guests) == {found.host}, (found.vm_state, found.host, there)
        assert there.held == {found.host} == there.bound, (found.vm_state, there)
        assert not there.held_by_moves
        if found.vm_state == Vm.ACTIVE and found.power_state == Power.RUNNING:
            assert set(there.plugged) == {found.host}


async def follow(events: list[tuple[str, str | int]]) -> None:
    with tempfile.TemporaryDirectory(prefix="kn-course-") as directory:
        async with opened(Path(directory) / "state") as three:
            course = Course(three)
            await course._boot()
            await course._boot()
            for uuid in course.servers:
                await attached(three.cloud, uuid)
            for what, whom in events:
                await course.happen(what, whom)
            await course.all_come_back()
            await course.judge()


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=st.lists(EVENTS, max_size=12))
def test_any_course_ends_well(events: list[tuple[str, str | int]]) -> None:
    asyncio.run(follow(events))


@pytest.mark.parametrize(
    "events",
    [
        [("cut off", "h1"), ("evacuate", 0), ("cut off", "h2"), ("come back", "h1"), ("evacuate", 0)],
        [("lose power", "h1"), ("evacuate and go on", 0), ("come back", "h1"), ("clear", ""), ("delete", 0)],
        [("force down", "h1"), ("evacuate", 0), ("evacuate", 1), ("delete", 0), ("come back", "h1")],
    ],
)
def test_courses_that_are_always_tried(events: list[tuple[str, str | int]]) -> None:
    asyncio.run(follow(events))
