"""Wishes, deletes, deaths and silences in any order while a guest is sent: it ends well whatever comes."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kilonova.db import instances
from kilonova.errors import Refused
from kilonova.journal import attention
from kilonova.model.migration import Status
from kilonova.model.states import Power, Vm
from kilonova.operations import delete
from kilonova.testing.clock import FastClock
from tests.operations.live_hosts import live, rate_for
from tests.operations.mortal import Mortals
from tests.operations.test_live_matrix import FACTOR, OPTIONS
from tests.operations.with_volumes import attached

EVENTS = st.sampled_from(
    [
        "wait",
        "wait long",
        "abort",
        "force_complete",
        "delete",
        "controller",
        "source silent",
        "source heard",
        "destination silent",
        "destination heard",
        "source's agent",
        "destination's agent",
        "abort and controller",
    ]
)
NAMES = {"source": "h2", "destination": "h3"}


class Course:
    """What happens to a server that goes from h2 to h3, one event after the other."""

    def __init__(self, mortals: Mortals, uuid: str, migration: str) -> None:
        self.mortals = mortals
        self.three = mortals.three
        self.uuid = uuid
        self.migration = migration
        self.deleted = False

    async def happen(self, what: str) -> None:
        three, clock = self.three, self.three.cloud.clock
        with contextlib.suppress(Refused):
            if what.startswith("wait"):
                await clock.sleep(1.0 if what == "wait" else 8.0)
            elif what == "abort":
                await three.abort(self.migration)
            elif what == "force_complete":
                await three.force_complete(self.migration)
            elif what == "delete":
                await self._delete()
            elif what == "controller":
                await self.mortals.kill_controller()
            elif what == "abort and controller":
                await self._race()
            else:
                await self._host(what)

    async def _host(self, what: str) -> None:
        side, _, event = what.replace("'s", "").partition(" ")
        name = NAMES[side]
        if event == "silent":
            await self.mortals.silence(name)
        elif event == "heard":
            await self.mortals.heard_again(name)
        else:
            await self.mortals.kill_agent(name)
            await self.mortals.new_agent(name)

    async def _delete(self) -> None:
        await delete.submit(self.three.cloud.cloud, self.three.admin(), self.uuid)
        self.deleted = True

    async def _race(self) -> None:
        """A wish and a change of who runs it in the same moment."""
        await asyncio.gather(
            self.three.abort(self.migration), self.mortals.kill_controller(), return_exceptions=True
        )

    async def all_is_well_again(self) -> None:
        for name in NAMES.values():
            await self.mortals.heard_again(name)
        async with asyncio.timeout(40):
            while await self.three.cloud.db.read(attention.open_actions):
                await asyncio.sleep(0.01)
        await self.three.cleared()

    async def judge(self) -> None:
        three = self.three
        there = await three.everywhere(self.uuid)
        found = await three.cloud.db.read(lambda tx: instances.show_any(tx, self.uuid))
        assert found is not None
        migration = await three.migration(self.migration)
        assert not there.held_by_moves
        assert await three.nothing_left() == []
        if self.deleted:
            assert found.vm_state == Vm.DELETED
            assert not there.guests and not there.plugged and not there.bound and not there.held
            return
        assert (found.vm_state, found.task_state, found.power_state) == (Vm.ACTIVE, None, Power.RUNNING)
        host = {Status.COMPLETED: "h3"}.get(migration.status, "h2")
        assert migration.status in (Status.COMPLETED, Status.CANCELLED, Status.FAILED, Status.ERROR)
        assert (found.host, there.guests) == (host, {host: Power.RUNNING}), migration.status
        assert there.held == there.bound == {host} == set(there.plugged)


async def follow(events: list[str], seconds: float, from_the_start: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="kn-live-") as directory:
        clock = FastClock(FACTOR)
        async with live(Path(directory) / "state", clock=clock, DEFAULT=OPTIONS) as three:
            uuid = await three.boot(host="h2")
            await attached(three.cloud, uuid)
            mortals = Mortals(three)
            three.live("h2").rate = rate_for(seconds)
            migration = await three.begin(uuid, host="h3")
            if not from_the_start:
                await three.at(migration, Status.RUNNING)
            course = Course(mortals, uuid, migration)
            for what in events:
                await course.happen(what)
            await course.all_is_well_again()
            await course.judge()
            await mortals.end()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    events=st.lists(EVENTS, min_size=1, max_size=8),
    seconds=st.sampled_from([2.0, 10.0, 60.0]),
    from_the_start=st.booleans(),
)
@example(["source silent", "force_complete", "source heard", "abort"], 60.0, False)
@example(["abort", "controller", "source's agent"], 60.0, False)
@example(["destination silent", "wait long", "delete", "destination heard"], 10.0, False)
@example(["source's agent", "controller", "force_complete", "abort"], 60.0, False)
@example(["source silent", "wait long", "wait long"], 2.0, False)
def test_any_course_ends_well(events: list[str], seconds: float, from_the_start: bool) -> None:
    asyncio.run(follow(events, seconds, from_the_start))
