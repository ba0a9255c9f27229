"""Choosing a host on a view that may be stale, and booking there: never too much, and always with reasons."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.db import hosts, server_groups
from kilonova.db import placement as bookings
from kilonova.db.engine import Tx
from kilonova.db.server_groups import ServerGroup
from kilonova.errors import NotFound, NoValidHost, TryAgain
from kilonova.scheduler import select
from kilonova.scheduler.options import default_options
from kilonova.scheduler.request import Candidate
from kilonova.scheduler.select import GONE
from kilonova.testing.clock import VirtualClock
from tests.unit.scheduler.states import request
from tests.unit.scheduler.town import FULL, Town, node

DOWN_TIME = default_options().service_down_time


async def test_the_best_host_is_booked(town: Town) -> None:
    await town.add("small", memory=100)
    await town.add("big", "old")
    await town.db.write(lambda tx: hosts.set_disabled(tx, "old", True, "rust", town.clock.now()))
    found = await town.boot("u1")
    assert (found.host, found.node, found.compute_id) == ("big", "big.example", "node-big")
    assert (found.availability_zone, found.reasons) == ("nova", {"old": "disabled (rust)"})
    assert found.removed == {"ComputeFilter": 1}
    assert await town.placement.held("u1") == {"node-big": {"VCPU": 8, "MEMORY_MB": 1}}


async def test_when_nobody_has_room_each_host_has_its_reason(town: Town) -> None:
    await town.add("h1", "h2", "h3")
    await town.boot("u1", requested_host="h1")
    town.scheduler.forget()
    await town.db.write(lambda tx: hosts.set_forced_down(tx, "h2", True, town.clock.now()))
    with pytest.raises(NoValidHost) as caught:
        await town.boot("u2", tried={"h3": "no disk"})
    assert caught.value.reasons == {
        "h1": "8 vCPUs wanted, 0 free",
        "h2": "forced down",
        "h3": "it failed there: no disk",
    }
    assert caught.value.removed == {"RetryFilter": 1, "ComputeFilter": 1, "Capacity": 1}
    assert await town.placement.held("u2") == {}


async def test_a_lost_claim_costs_the_next_candidate(town: Town) -> None:
    await town.add("h1", memory=9000)
    await town.add("h2")
    await town.seen()  # the view from here on
    await town.placement.claim("other", {node("h1"): {"VCPU": 1}}, "p1", "u1")
    found = await town.boot("u1")
    assert (found.host, found.reasons) == ("h2", {"h1": FULL})
    assert town.claims == ["h1", "h2"]


async def test_a_provider_that_is_gone_costs_the_next_candidate(town: Town) -> None:
    await town.add("h1", memory=9000)
    await town.add("h2")
    await town.seen()
    await town.placement.remove(node("h1"))
    found = await town.boot("u1")
    assert (found.host, found.reasons) == ("h2", {"h1": GONE})
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
    assert await town.reasons("u1") == {"h1": FULL}
    assert town.claims == ["h1"]
    # The theft is not known yet, but the host is doubtful: it is looked at again before the answer.
    assert await town.reasons("u1") == {"h1": "8 vCPUs wanted, 7 free"}
    await town.placement.release("thief")
    town.before_claim = None
    assert (await town.boot("u1")).host == "h1"


async def test_what_is_booked_here_is_known_at_once(town: Town) -> None:
    await town.add("h1", memory=9000)
    await town.add("h2")
    assert (await town.boot("u1")).host == "h1"
    looks = town.scheduler.view.looks
    assert (await town.boot("u2")).host == "h2"
    assert town.scheduler.view.looks == looks
    assert town.claims == ["h1", "h2"]  # none was lost


async def test_many_at_once_are_spread_without_losing_a_claim(town: Town) -> None:
    await town.add("h1", "h2", "h3", "h4")
    found = await asyncio.gather(*(town.boot(f"u{number}") for number in range(4)))
    assert sorted(each.host for each in found) == ["h1", "h2", "h3", "h4"]
    assert len(town.claims) == 4


async def test_a_claim_that_is_broken_off_is_not_counted(town: Town) -> None:
    await town.add("h1")
    started, goes_on = asyncio.Event(), asyncio.Event()

    async def wait(provider: str) -> None:
        started.set()
        await goes_on.wait()

    town.before_claim = wait
    boot = asyncio.create_task(town.boot("u1"))
    await started.wait()
    boot.cancel()
    with pytest.raises(asyncio.CancelledError):
        await boot
    town.before_claim, looks = None, town.scheduler.view.looks
    assert (await town.boot("u2")).host == "h1"
    assert town.scheduler.view.looks == looks  # what was counted was taken back, so nobody need look


async def test_after_an_outage_of_ours_silent_hosts_are_waited_for(town: Town) -> None:
    """Who could not be heard is not dead: while that may be so, nobody is told that there is no host."""
    await town.add("h1", "h2")
    town.clock.advance(DOWN_TIME + 5)  # the database was away, and nobody's signs of life were written
    town.scheduler.forget()
    town.scheduler.interrupted()
    with pytest.raises(TryAgain, match="last outage"):
        await town.boot("u1")
    assert await town.placement.held("u1") == {}
    town.clock.advance(DOWN_TIME / 4)  # so often signs of life are read
    await town.db.write(lambda tx: hosts.heartbeat(tx, "h2", town.clock.now()))
    town.scheduler.forget()
    assert (await town.boot("u1")).host == "h2"
    with pytest.raises(TryAgain):  # h2 is full now, and h1 may be heard yet
        await town.boot("u2")
    town.clock.advance(DOWN_TIME + 1)
    await town.db.write(lambda tx: hosts.heartbeat(tx, "h2", town.clock.now()))
    town.scheduler.forget()
    with pytest.raises(NoValidHost) as caught:
        await town.boot("u2")
    assert caught.value.reasons == {"h1": "its agent does not answer", "h2": "8 vCPUs wanted, 0 free"}


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
    assert (told.hosts, told.counts, told.reasons) == (2, {"Capacity": 1}, {"h1": "8 vCPUs wanted, 0 free"})
    assert [each.host for each in told.ranked] == ["h2"]
    assert await town.db.read(bookings.audit) == []


async def test_details_of_a_host_are_known_after_a_restart(town: Town) -> None:
    await town.add("h1", details={"datapath_type": "netdev"})
    assert await town.scheduler.details("h1") == {"datapath_type": "netdev"}
    assert await town.scheduler.details("h2") == {}


async def test_which_zones_are_open_and_which_hosts_are_known(town: Town) -> None:
    await town.add("h1", "h2")
    assert await town.scheduler.zone_is_open("nova")
    assert not await town.scheduler.zone_is_open("east")
    assert await town.scheduler.knows("h1", "h2.example") == (True, True)
    assert await town.scheduler.knows(None, "h3.example") == (True, False)
    assert await town.scheduler.knows("h3", None) == (False, True)
    for name in ("h1", "h2"):
        assert await town.scheduler.zone_is_open("nova")
        await town.db.write(lambda tx, name=name: hosts.set_disabled(tx, name, True, None, 1))
        town.scheduler.forget()
    assert not await town.scheduler.zone_is_open("nova")


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


async def test_of_very_many_hosts_only_some_are_told(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "TOLD", 3)
    monkeypatch.setattr(select, "NOTED", 2)
    await town.add(*(f"h{number}" for number in range(5)))
    await town.db.write(lambda tx: hosts.set_disabled(tx, "h1", True, None, 1))
    with pytest.raises(NoValidHost) as caught:
        await town.boot("u1", cpus=9)
    assert (
        str(caught.value) == "No valid host was found: 5 hosts were refused by ComputeFilter 1, Capacity 4."
    )
    assert list(caught.value.reasons) == ["h1", "h0", "h2"] or len(caught.value.reasons) == 3
    assert caught.value.removed == {"ComputeFilter": 1, "Capacity": 4}
    assert len((await town.boot("u1", requested_host="h0")).reasons) == 2


async def test_the_best_are_chosen_among_by_chance(town: Town) -> None:
    town.options = default_options(host_subset_size=3)
    for number in range(5):
        await town.add(f"h{number}", memory=9000 - 1000 * number)

    async def first(seed: int, **more: Any) -> str:
        scheduler = town.another(seed)
        found = await town.select(request(uuid=f"s{seed}", resources={"MEMORY_MB": 1}), scheduler)
        await town.placement.release(f"s{seed}")
        return found.host

    assert {await first(seed) for seed in range(30)} == {"h0", "h1", "h2"}
    town.options = default_options(shuffle_best_same_weighed_hosts=True)
    assert {await first(seed) for seed in range(5)} == {"h0"}
    await town.add("h5", memory=9000)
    assert {await first(seed) for seed in range(30)} == {"h0", "h5"}
    town.options = default_options()
    assert {await first(seed) for seed in range(5)} == {"h0"}


async def test_a_view_that_is_wrong_is_put_right_by_the_claim_it_costs(
    town: Town, clock: VirtualClock
) -> None:
    await town.add("h1")
    await town.boot("u1")
    clock.advance(30)
    await town.db.write(lambda tx: hosts.heartbeat(tx, "h1", clock.now()))
    columns = await town.scheduler.view.current(anew=True)
    clock.advance(30)
    await town.seen()
    columns.stock["VCPU"].used[:] = 0  # as if a change had been missed
    assert await town.reasons("u2") == {"h1": "8 vCPUs wanted, 0 free"}
    assert town.claims == ["h1", "h1"]


async def test_a_member_of_a_group_that_was_late_goes_to_the_others_at_once(town: Town) -> None:
    """With very many hosts it must not try them one by one until it comes to the right one."""
    for number in range(6):
        await town.add(f"h{number}", memory=9000 - number)
    made = ServerGroup(
        id=0, uuid="g", project_id="p", user_id="u", name="g", policy="affinity", rules={}, created_at=1
    )
    await town.db.write(lambda tx: server_groups.create(tx, made, limit=-1, user_limit=None))
    await town.db.write(lambda tx: server_groups.add_members(tx, "g", ["first", "late"], "u", -1))
    wanted = request(uuid="late", resources={"VCPU": 1}, hints={"group": "g"})

    async def claim(candidate: Candidate) -> str | None:
        town.claims.append(candidate.host)
        if len(town.claims) == 1:  # another member is faster, elsewhere
            await town.placement.claim("first", {node("h5"): {"VCPU": 1}}, "p", "u")

        def keeps_policy(tx: Tx) -> bool:
            return server_groups.violation(tx, "g", "late", candidate.compute_id) is None

        fitted = await town.placement.claim("late", candidate.allocations, "p", "u", also=keeps_policy)
        return None if fitted else FULL

    found = await town.scheduler.select(wanted, claim)
    assert (found.host, town.claims) == ("h5", ["h0", "h5"])
