"""An agent on a fake hypervisor, on a clock that stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar

from kilonova.agent.agent import Agent, AgentOptions
from kilonova.agent.ledger import Ledger
from kilonova.clock import SECOND
from kilonova.model.flavor import Flavor
from kilonova.model.host import Inventory
from kilonova.model.port import Vif
from kilonova.model.volume import Attachment, Connection
from kilonova.rpc.messages import Command, GuestSpec, Observed
from kilonova.testing.clock import VirtualClock
from kilonova.virt.fake.driver import FakeDriver

T = TypeVar("T")


class RecordingDriver(FakeDriver):
    """Writes its verbs down, with the second in which they came."""

    def __init__(self, path: Path, clock: VirtualClock) -> None:
        super().__init__("h1", "node-1", path, clock, {"VCPU": Inventory(total=8)})
        self.path, self.clock, self.begin = path, clock, clock.now()
        self.verbs: list[tuple[str, int]] = []
        self.dies_after_looks = 0  # so many looks still see it alive

    async def _do(self, verb: str) -> None:
        self.verbs.append((verb, (self.clock.now() - self.begin) // SECOND))
        await super()._do(verb)

    def count(self, verb: str) -> int:
        return sum(name == verb for name, _ in self.verbs)

    async def power_state(self, uuid: str) -> int:
        state = await super().power_state(uuid)
        if self.dies_after_looks:
            self.dies_after_looks -= 1
            if not self.dies_after_looks:
                self.turn_off(uuid)
        return state


class Plugger:
    def __init__(self) -> None:
        self.log: list[str] = []

    async def plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        self.log.append(f"+{vif.port_id}")

    async def unplug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        self.log.append(f"-{vif.port_id}")


class NoImages:
    async def read(self, image_id: str) -> AsyncIterator[bytes]:
        yield b""


class Host:
    """``restart`` gives another agent on the same guests and ledger, as after a kill."""

    def __init__(self, path: Path, builds: int = 10) -> None:
        self.path, self.builds = path, builds
        self.clock = VirtualClock()
        self.reports: list[Observed] = []
        self.refuses_reports = False
        self.plugger = Plugger()
        self.hears_events = True
        self.restart()

    def restart(self) -> None:
        self.driver = RecordingDriver(self.path, self.clock)
        self.ledger = Ledger(self.path / "ledger.db", self.clock)
        self.agent = Agent(
            self.driver,
            self.plugger,
            NoImages(),
            self.ledger,
            self.clock,
            self._report,
            AgentOptions(max_concurrent_builds=self.builds, hears_events=self.hears_events),
        )

    async def _report(self, report: Observed) -> None:
        if self.refuses_reports:
            raise ConnectionError("no controller")
        self.reports.append(report)

    @property
    def reported(self) -> list[tuple[str, int]]:
        return [(report.uuid, report.power_state) for report in self.reports]

    async def running(self, *uuids: str) -> None:
        """Started guests; what was done for it is forgotten."""
        for uuid in uuids:
            await self.agent.prepare(command("p"), guest(uuid))
            await self.agent.start(command("s"), guest(uuid), paused=False)
        self.driver.verbs.clear()
        self.reports.clear()

    async def finish(self, work: Awaitable[T]) -> T:
        """The result of something that takes time on our clock, second by second."""
        task = asyncio.ensure_future(work)
        for _ in range(100_000):
            if task.done():
                return await task
            for _ in range(10):
                await asyncio.sleep(0)
            self.clock.advance(0.5)
        raise TimeoutError

    async def later(self, seconds: float) -> None:
        """Let so much time go by, and all be reported."""
        for step in (0.0, seconds):
            self.clock.advance(step)
            for _ in range(10):
                await asyncio.sleep(0)
        await self.quiet()

    async def quiet(self) -> None:
        """Wait until nothing is left to be reported."""
        while self.agent._reports:
            await asyncio.gather(*self.agent._reports)


def command(identity: str = "1") -> Command:
    return Command(id=identity)


def volume(number: int = 1) -> Attachment:
    return Attachment(
        id=f"b{number}",
        volume_id=f"v{number}",
        attachment_id=f"a{number}",
        device=f"/dev/vd{'abc'[number]}",
        connection=Connection(kind="file", path=f"/volumes/v{number}"),
    )


def guest(uuid: str = "g1", **more: object) -> GuestSpec:
    flavor = Flavor(id=1, flavorid="1", name="f", vcpus=1, memory_mb=64, root_gb=1)
    vifs = (Vif(port_id=f"port-{uuid}", mac="fa:16:3e:00:00:01", network_id="n", network_name="n"),)
    values = {"name": "g", "hostname": "g", "project_id": "p", "flavor": flavor, "vifs": vifs, **more}
    return GuestSpec(uuid=uuid, **values)  # type: ignore[arg-type]
