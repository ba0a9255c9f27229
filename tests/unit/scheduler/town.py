"""Hosts in a database, and schedulers for them."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from kilonova.clock import Clock
from kilonova.db import hosts
from kilonova.db.engine import Database
from kilonova.errors import NoValidHost
from kilonova.model.host import HostReport, Inventory
from kilonova.scheduler.options import Options, default_options
from kilonova.scheduler.request import Candidate, Selection, ServerRequest
from kilonova.scheduler.select import Scheduler
from kilonova.services.placement.builtin import BuiltinPlacement
from tests.unit.scheduler.states import request

FULL = "another server was faster in taking what was free"


@dataclass
class Town:
    """Hosts of eight vCPUs each, and a scheduler for them."""

    db: Database
    clock: Clock
    options: Options = field(default_factory=default_options)
    claims: list[str] = field(default_factory=list)
    before_claim: Callable[[str], Awaitable[Any]] | None = None

    def __post_init__(self) -> None:
        self.placement = BuiltinPlacement(self.db, self.clock)
        self.scheduler = self.another()

    def another(self, seed: int = 1) -> Scheduler:
        """One more scheduler on the same database, with a view of its own."""
        return Scheduler(self.db, self.placement, self.clock, self.options, chance=random.Random(seed))

    async def add(self, *names: str, memory: int = 4096, cpus: int = 8, **more: Any) -> None:
        for name in names:
            stock = {"VCPU": Inventory(total=cpus), "MEMORY_MB": Inventory(total=memory)}
            report = HostReport(
                host=name,
                compute_id=node(name),
                hypervisor_hostname=f"{name}.example",
                hypervisor_type="QEMU",
                hypervisor_version=1,
                host_ip="192.0.2.1",
                inventories=stock,
                **more,
            )
            await self.db.write(lambda tx, report=report: hosts.upsert(tx, report, self.clock.now()))
            await self.placement.report(node(name), report.hypervisor_hostname, stock, report.traits)

    async def remove(self, name: str) -> None:
        await self.db.write(lambda tx: hosts.remove(tx, name))
        await self.placement.remove(node(name))

    async def select(self, wanted: ServerRequest, scheduler: Scheduler | None = None) -> Selection:
        async def claim(candidate: Candidate) -> str | None:
            self.claims.append(candidate.host)
            if self.before_claim is not None:
                await self.before_claim(candidate.compute_id)
            fitted = await self.placement.claim(wanted.uuid, candidate.allocations, "p1", "u1")
            return None if fitted else FULL

        return await (scheduler or self.scheduler).select(wanted, claim)

    async def boot(self, uuid: str, *, cpus: int = 8, **more: Any) -> Selection:
        resources = {"VCPU": cpus, "MEMORY_MB": 1}
        return await self.select(request(uuid=uuid, resources=resources, **more))

    async def reasons(self, uuid: str, **more: Any) -> dict[str, str]:
        """Why nobody took it."""
        with pytest.raises(NoValidHost) as caught:
            await self.boot(uuid, **more)
        return caught.value.reasons

    async def seen(self) -> set[str]:
        """The hosts in the view."""
        return set((await self.scheduler.view.current()).row_of)


def node(name: str) -> str:
    return f"node-{name}"
