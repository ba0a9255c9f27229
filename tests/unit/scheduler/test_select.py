"""Choosing a host on a view that may be stale, and booking there: never too much, and always with reasons."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kilonova.clock import SECOND
from kilonova.db import hosts
from kilonova.db import placement as bookings
from kilonova.db.engine import Database
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.errors import NotFound, NoValidHost
from kilonova.model.host import HostReport, Inventory
from kilonova.scheduler.request import Selection, ServerRequest
from kilonova.scheduler.select import Scheduler
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.testing.clock import VirtualClock
from tests.unit.scheduler.states import request

FASTER = "another server was faster in taking what was free"


@dataclass
class Town:
    """Hosts of eight vCPUs each, and a scheduler for them."""

    db: Database
    clock: VirtualClock
    placement: BuiltinPlacement
    scheduler: Scheduler
    claims: list[str] = field(default_factory=list)
    before_claim: Callable[[str], Any] | None = None

    async def add(self, *names: str, memory: int = 4096, **more: Any) -> None:
        for name in names:
            stock = {"VCPU": Inventory(total=8), "MEMORY_MB": Inventory(total=memory)}
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
            await self.placement.report(node(name), report.hypervisor_hostname, stock, ())

    async def select(self, uuid: str, wanted: ServerRequest) -> Selection:
        async def claim(provider: str) -> bool:
            self.claims.append(provider.removeprefix("node-"))
            if self.before_claim is not None:
                await self.before_claim(provider)
            return await self.placement.claim(uuid, {provider: wanted.resources}, "p1", "u1")

        return await self.scheduler.select(wanted, claim)

    async def boot(self, uuid: str, *, cpus: int = 8, **more: Any) -> Selection:
        return await self.select(uuid, request(resources={"VCPU": cpus, "MEMORY_MB": 1}, **more))

    async def reasons(self, uuid: str, **more: Any) -> dict[str, str]:
        """Why nobody took it."""
        with pytest.raises(NoValidHost) as caught:
            await self.boot(uuid, **more)
        return caught.value.reasons


def node(name: str) -> str:
    return f"node-{name}"


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    clock = VirtualClock()
    db = SqliteDatabase(tmp_path / "kilonova.db", clock)
    await bring_up(db)
    placement = BuiltinPlacement(db, clock)
    scheduler = Scheduler(db, placement, clock, service_down_time=60, default_zone="nova")
    yield Town(db, clock, placement, scheduler)
    await db.close()


async def test_the_best_host_is_booked(town: Town) -> None:
    await town.add("small", memory=100)
    await town.add("big", "old")
    await town.db.write(lambda tx: hosts.set_disabled(tx, "old", True, "rust", town.clock.now()))
    found = await town.boot("u1")
    assert found == Selection(
        host="big",
        node="big.example",
        availability_zone="nova",
        reasons={"old": "disabled (rust)"},
    )
    assert await town.placement.held("u1") == {"node-big": {"VCPU": 8, "MEMORY_MB": 1}}


async def test_when_nobody_has_room_each_host_has_its_reason(town: Town) -> None:
    await town.add("h1", "h2", "h3")
    await town.boot("u1", requested_host="h1")
    town.scheduler.forget()
    await town.db.write(lambda tx: hosts.set_forced_down(tx, "h2", True, town.clock.now()))
    assert await town.reasons("u2", tried={"h3": "no disk"}) == {
        "h1": "8 vCPUs wanted, 0 free",
        "h2": "forced down",
        "h3": "it failed there: no disk",
    }
    assert await town.placement.held("u2") == {}


async def test_a_lost_claim_costs_the_next_candidate(town: Town) -> None:
    await town.add("h1", memory=9000)
    await town.add("h2")
    await town.scheduler.zones()  # the view from here on
    await town.placement.claim("other", {node("h1"): {"VCPU": 1}}, "p1", "u1")
    found = await town.boot("u1")
    assert (found.host, found.reasons) == ("h2", {"h1": FASTER})
    assert town.claims == ["h1", "h2"]


async def test_a_provider_that_is_gone_costs_the_next_candidate(town: Town) -> None:
    await town.add("h1", memory=9000)
    await town.add("h2")
    await town.scheduler.zones()
    await town.placement.remove(node("h1"))
    assert (await town.boot("u1")).host == "h2"
    town.scheduler.forget()
    assert (await town.reasons("u2"))["h1"] == "placement has no inventory of it"


async def test_what_has_become_free_is_seen_at_a_second_look(town: Town) -> None:
    await town.add("h1")
    await town.boot("u1")
    await town.scheduler.explain(request())  # sees it full
    await town.placement.release("u1")
    assert (await town.boot("u2")).host == "h1"


async def test_a_second_look_is_taken_only_when_the_first_was_old(town: Town) -> None:
    await town.add("h1")

    async def steal(provider: str) -> None:
        await town.placement.claim("thief", {provider: {"VCPU": 1}}, "p1", "u1")

    town.before_claim = steal
    assert await town.reasons("u1") == {"h1": FASTER}
    assert town.claims == ["h1"]
    await town.placement.release("thief")
    assert await town.reasons("u1") == {"h1": "8 vCPUs wanted, 7 free"}  # the view is from before the theft
    assert town.claims == ["h1", "h1"]


async def test_the_view_is_kept_for_a_second(town: Town) -> None:
    await town.add("h1")
    assert list(await town.scheduler.zones()) == ["nova"]
    await town.add("h2")
    town.clock.advance(0.999)
    assert len((await town.scheduler.zones())["nova"]) == 1
    town.clock.advance(0.001)
    assert len((await town.scheduler.zones())["nova"]) == 2
    await town.add("h3")
    town.scheduler.forget()
    assert len((await town.scheduler.zones())["nova"]) == 3


async def test_a_clock_that_is_set_back_does_not_freeze_the_view(town: Town) -> None:
    await town.add("h1")
    await town.scheduler.zones()
    await town.add("h2")
    town.clock._now -= 3600 * SECOND
    assert len((await town.scheduler.zones())["nova"]) == 2


async def test_a_change_during_a_look_is_not_lost(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    await town.add("h1")
    looking, goes_on = asyncio.Event(), asyncio.Event()
    providers = town.placement.providers

    async def slow() -> Any:
        found = await providers()
        looking.set()
        await goes_on.wait()
        return found

    monkeypatch.setattr(town.placement, "providers", slow)
    first = asyncio.create_task(town.scheduler.zones())
    await looking.wait()
    await town.add("h2")
    town.scheduler.forget()
    goes_on.set()
    assert len((await first)["nova"]) == 1
    assert len((await town.scheduler.zones())["nova"]) == 2


async def test_without_hosts_it_says_so(town: Town) -> None:
    with pytest.raises(NoValidHost, match="there is none at all") as caught:
        await town.boot("u1")
    assert caught.value.reasons == {}


async def test_a_forced_host_that_does_not_exist(town: Town) -> None:
    await town.add("h1")
    assert await town.reasons("u1", forced_host="h9") == {"h9": "there is no such host"}
    assert await town.reasons("u1", forced_node="n9") == {"n9": "there is no such host"}
    assert (await town.boot("u1", forced_host="h1")).host == "h1"


async def test_explaining_books_nothing(town: Town) -> None:
    await town.add("h1", "h2")
    await town.boot("u1", requested_host="h1")
    told = await town.scheduler.explain(request(resources={"VCPU": 8}))
    assert told == {"h1": "8 vCPUs wanted, 0 free", "h2": ""}
    assert await town.db.read(bookings.audit) == []


async def test_details_of_a_host_are_known_after_a_restart(town: Town) -> None:
    await town.add("h1", details={"datapath_type": "netdev"})
    assert await town.scheduler.details("h1") == {"datapath_type": "netdev"}
    assert await town.scheduler.details("h2") == {}


async def test_many_at_once_never_book_too_much(town: Town) -> None:
    await town.add("h1", "h2", "h3")

    async def try_it(number: int) -> str | None:
        try:
            return (await town.boot(f"u{number}", cpus=3)).host
        except NoValidHost as error:
            assert set(error.reasons) == {"h1", "h2", "h3"}
            return None

    found = await asyncio.gather(*(try_it(number) for number in range(20)))
    assert sorted(each for each in found if each) == ["h1", "h1", "h2", "h2", "h3", "h3"]
    assert await town.db.read(bookings.audit) == []
    assert sum(summary.used["VCPU"] for summary in await town.placement.providers()) == 18


async def test_other_faults_of_a_claim_go_on(town: Town) -> None:
    await town.add("h1")

    async def fail(provider: str) -> None:
        raise RuntimeError("database on fire")

    town.before_claim = fail
    with pytest.raises(RuntimeError, match="on fire"):
        await town.boot("u1")
    with pytest.raises(NotFound):
        await town.placement.claim("u1", {"nowhere": {"VCPU": 1}}, "p1", "u1")
