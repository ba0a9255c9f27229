"""Volumes come and go in any order while hosts fail, guests keep what they have, and servers are stopped,
started, rebooted, shelved and unshelved: in the end row, volume service and guest agree."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.app import EmbeddedCloud
from kilonova.db import volume_attachments
from kilonova.errors import HostFault, Refused, TryAgain
from kilonova.model.states import Power, Vm
from kilonova.operations import attach_volume, delete, detach_volume, reboot, shelve, start, stop, unshelve
from kilonova.operations.attach_volume import Wish
from kilonova.testing.embedded import audits, embedded, fake_driver, leaks, member, server, settled
from tests.crash.scenes import active
from tests.operations.with_volumes import file_of, had, new_volume

ASKED = ["attach 0", "attach 1", "attach 1 ends", "detach first", "detach last", "stop", "start", "reboot"]
ASKED += ["shelve", "unshelve"]
HAPPENS = ["attach fails", "attach is late", "detach fails", "detach is late", "it keeps its disks", "look"]
HAPPENS += ["nobody looks at volumes"]


class Course:
    """``volumes`` are those that there are; the server may have each."""

    def __init__(self, cloud: EmbeddedCloud, uuid: str, volumes: list[str]) -> None:
        self.cloud, self.uuid, self.volumes = cloud, uuid, volumes
        self.driver = fake_driver(cloud)

    async def happen(self, event: str) -> None:
        verb, _, what = event.partition(" ")
        match what:
            case "fails":
                self.driver.faults.add(f"{verb}_volume", HostFault("ordered"))
            case "is late":
                self.driver.faults.add(f"{verb}_volume", TryAgain("ordered"))
            case "keeps its disks":
                self.driver.keeps_devices ^= {self.uuid}
            case "looks at volumes":
                self.driver.unreachable ^= {self.volumes[1]}
            case _:
                with contextlib.suppress(Refused):  # the state of server or volume does not allow it
                    await self.ask(event)

    async def ask(self, event: str) -> None:
        cloud, context = self.cloud.cloud, member(self.cloud)
        match event.split():
            case ["attach", number, *ends]:
                wish = Wish(volume_id=self.volumes[int(number)], delete_on_termination=bool(ends))
                await attach_volume.submit(cloud, context, self.uuid, wish)
            case ["detach", which]:
                has = (await server(self.cloud, self.uuid)).volumes
                for each in has[:1] if which == "first" else has[-1:]:
                    await detach_volume.submit(cloud, context, self.uuid, each.volume_id)
            case ["stop"]:
                await stop.submit(cloud, context, self.uuid)
            case ["start"]:
                await start.submit(cloud, context, self.uuid)
            case ["reboot"]:
                await reboot.submit(cloud, context, self.uuid, hard=True)
            case ["shelve"]:
                await shelve.submit(cloud, context, self.uuid)
            case ["unshelve"]:
                await unshelve.submit(cloud, context, self.uuid)
            case ["look"]:
                await settled(self.cloud, self.uuid)

    async def judge(self) -> None:
        found = await settled(self.cloud, self.uuid, 60)
        if found.vm_state == Vm.ERROR:  # its host did not see a volume when it was to be made anew
            assert found.fault is not None and "cannot be had on this host" in found.fault.message
            self.driver.unreachable.clear()
            await reboot.submit(self.cloud.cloud, member(self.cloud), self.uuid, hard=True)
            found = await settled(self.cloud, self.uuid, 60)
        assert found.task_state is None, found.fault
        assert found.vm_state in (Vm.ACTIVE, Vm.STOPPED, Vm.SHELVED_OFFLOADED), found.fault
        assert (found.power_state == Power.RUNNING) == (found.vm_state == Vm.ACTIVE)
        assert self.driver.guest_file.volumes(self.uuid) == (found.volumes if found.host else ())
        mine = {each.volume_id: each for each in found.volumes}
        assert len(mine) == len(found.volumes)
        for volume in self.volumes:
            there = await had(self.cloud, volume)
            by = ((found.host, "attached"),) if volume in mine else ()
            assert (there.volume, there.by) == ("in-use" if by else "available", by)
            assert volume not in mine or (mine[volume].connection is None) == (found.host is None)

    async def end(self) -> None:
        """Delete the server: nothing is left of it, but for those of its volumes that are to stay."""
        ended = {
            each.volume_id
            for each in (await server(self.cloud, self.uuid)).volumes
            if each.delete_on_termination
        }
        await delete.submit(self.cloud.cloud, member(self.cloud), self.uuid)
        assert (await settled(self.cloud, self.uuid, 60)).vm_state == Vm.DELETED
        await self.cloud.volume.idle()
        for volume in self.volumes:
            rest = await self.cloud.db.read(lambda tx, of=volume: volume_attachments.of_volume(tx, of))
            assert rest == []
            if volume not in ended:
                await self.cloud.volume.delete(volume)
        await self.cloud.volume.idle()
        assert [each for each in self.volumes if file_of(self.cloud, each).exists()] == []


async def run(courses: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with embedded(Path(directory)) as cloud:
            for events in courses:
                course = Course(cloud, await active(cloud), [await new_volume(cloud) for _ in range(2)])
                for event in events:
                    await course.happen(event)
                for verb in ("attach_volume", "detach_volume"):
                    course.driver.faults.mend(verb)
                await course.judge()
                await course.end()
                course.driver.unreachable.clear()
            assert await leaks(cloud) == []
            assert await audits(cloud) == []


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.sampled_from(ASKED + HAPPENS), min_size=2, max_size=9), min_size=4, max_size=6))
def test_any_course(courses: list[list[str]]) -> None:
    asyncio.run(run(courses))
