"""Interfaces come and go in any order while hosts fail, guests keep what they have, and servers are stopped,
started and rebooted: in the end row, network service, switch and guest agree, also about the order."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.app import EmbeddedCloud
from kilonova.errors import HostFault, Refused, TryAgain
from kilonova.model.states import Power, Vm
from kilonova.operations import attach_interface, delete, detach_interface, reboot, start, stop
from kilonova.operations.attach_interface import AttachParams
from kilonova.testing.embedded import embedded, fake_driver, leaks, member, server, settled
from kilonova.vif.null import NullPlugger
from tests.crash.scenes import active

ASKED = ["attach", "attach", "detach first", "detach last", "stop", "start", "reboot"]
HAPPENS = ["attach fails", "attach is late", "detach fails", "detach is late", "it keeps its cards", "look"]


class Course:
    def __init__(self, cloud: EmbeddedCloud, uuid: str, network: str) -> None:
        self.cloud, self.uuid, self.network = cloud, uuid, network
        self.driver = fake_driver(cloud)

    async def happen(self, event: str) -> None:
        verb, _, what = event.partition(" ")
        match what:
            case "fails":
                self.driver.faults.add(f"{verb}_interface", HostFault("ordered"))
            case "is late":
                self.driver.faults.add(f"{verb}_interface", TryAgain("ordered"))
            case "keeps its cards":
                self.driver.keeps_devices ^= {self.uuid}
            case _:
                with contextlib.suppress(Refused):  # the server's state does not allow it, or it has none
                    await self.ask(event)

    async def ask(self, event: str) -> None:
        cloud, context = self.cloud.cloud, member(self.cloud)
        match event:
            case "attach":
                params = AttachParams(port_id=cloud.new_uuid(), network_id=self.network)
                await attach_interface.submit(cloud, context, self.uuid, params)
            case "detach first" | "detach last":
                vifs = (await server(self.cloud, self.uuid)).vifs
                for vif in vifs[:1] if event == "detach first" else vifs[-1:]:
                    await detach_interface.submit(cloud, context, self.uuid, vif.port_id)
            case "stop":
                await stop.submit(cloud, context, self.uuid)
            case "start":
                await start.submit(cloud, context, self.uuid)
            case "reboot":
                await reboot.submit(cloud, context, self.uuid, hard=True)
            case "look":
                await settled(self.cloud, self.uuid)

    async def judge(self) -> None:
        found = await settled(self.cloud, self.uuid, 60)
        assert found.task_state is None and found.vm_state in (Vm.ACTIVE, Vm.STOPPED), found.fault
        assert (found.power_state == Power.RUNNING) == (found.vm_state == Vm.ACTIVE)
        assert self.cloud.host is not None and isinstance(self.cloud.host.plugger, NullPlugger)
        plugged = {port for port, whose in self.cloud.host.plugger.plugged().items() if whose == self.uuid}
        assert found.vifs == await self.cloud.network.vifs(self.uuid)
        assert plugged == {vif.port_id for vif in found.vifs}
        assert self.driver.guest_file.macs(self.uuid) == tuple(vif.mac for vif in found.vifs)


async def run(courses: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with embedded(Path(directory)) as cloud:
            for events in courses:
                uuid = await active(cloud)
                course = Course(cloud, uuid, (await server(cloud, uuid)).vifs[0].network_id)
                for event in events:
                    await course.happen(event)
                await course.judge()
                for verb in ("attach_interface", "detach_interface"):
                    course.driver.faults.mend(verb)
                await delete.submit(cloud.cloud, member(cloud), uuid)
                await settled(cloud, uuid, 60)
            assert await leaks(cloud) == []


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.sampled_from(ASKED + HAPPENS), min_size=2, max_size=9), min_size=4, max_size=6))
def test_any_course(courses: list[list[str]]) -> None:
    asyncio.run(run(courses))
