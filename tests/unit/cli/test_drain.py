"""Emptying a host: which way each server goes, and the course of it, over a cloud that a test plays."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from kilonova.cli.drain_plan import COLD, EVACUATE, FITS, LIVE, WAYS, Move, Server, plan_for, read_policy
from kilonova.cli.drain_run import TRIES, Drain, Options, Outcome, Refused, Silent
from kilonova.testing.clock import VirtualClock

BOTH = (LIVE, COLD)


def server(number: int = 1, vm_state: str = "active", **more: Any) -> Server:
    return Server(uuid=f"u{number}", name=f"s{number}", vm_state=vm_state, **more)


# ---- plans ----


@pytest.mark.parametrize(
    ("text", "ways"),
    [("live", (LIVE,)), ("cold, LIVE", (COLD, LIVE)), ("evacuate,", (EVACUATE,)), (" stay ", ("stay",))],
)
def test_policies_that_can_be_read(text: str, ways: tuple[str, ...]) -> None:
    assert read_policy(text) == ways


@pytest.mark.parametrize("text", ["", ",", "fast", "live;cold", "stay,live"])
def test_policies_that_cannot(text: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        read_policy(text)


@pytest.mark.parametrize(
    ("vm_state", "policy", "up", "failed", "way", "why"),
    [
        ("active", BOTH, True, (), LIVE, ""),
        ("active", (COLD, LIVE), True, (), COLD, ""),
        ("active", BOTH, True, (LIVE,), COLD, ""),
        ("active", BOTH, True, BOTH, None, "live and cold failed"),
        ("paused", BOTH, True, (), LIVE, ""),
        ("paused", (COLD,), True, (), None, "it is paused, and cold cannot move such a server"),
        ("stopped", BOTH, True, (), COLD, ""),
        ("suspended", BOTH, True, (), None, "it is suspended, and live and cold cannot move such a server"),
        ("error", BOTH, True, (), None, "it is error, and live and cold cannot move such a server"),
        (
            "active",
            BOTH,
            False,
            (),
            None,
            "the host is down, and evacuate is not among the ways of the command",
        ),
        ("active", (*BOTH, EVACUATE), False, (), EVACUATE, ""),
        ("error", (EVACUATE,), False, (), EVACUATE, ""),
        ("active", (EVACUATE,), True, (), None, "the host is up, and the command says only evacuate"),
    ],
)
def test_the_way_of_a_server(
    vm_state: str, policy: tuple[str, ...], up: bool, failed: tuple[str, ...], way: str | None, why: str
) -> None:
    plan = plan_for(server(vm_state=vm_state), policy, host_is_up=up, failed=failed)
    assert (plan.way, plan.waits) == (way, False)
    assert plan.why.startswith(why) and bool(plan.why) == (way is None)


def test_what_goes_before_the_command() -> None:
    flavored = server(extra_specs={"drain:policy": "cold"})
    assert plan_for(flavored, BOTH, host_is_up=True).way == COLD
    both = changed(flavored, metadata={"drain_policy": "live"})
    assert plan_for(both, BOTH, host_is_up=True).way == LIVE
    stays = changed(both, metadata={"drain_policy": "stay"})
    assert plan_for(stays, BOTH, host_is_up=True).why == "it is to stay, by its metadata"
    odd = plan_for(changed(both, metadata={"drain_policy": "fly"}), BOTH, host_is_up=True)
    assert (odd.way, "which is no policy" in odd.why) == (None, True)


@given(
    vm_state=st.sampled_from(["active", "paused", "stopped", "error", "suspended", "resized", "building"]),
    task=st.sampled_from([None, "migrating", "powering-off"]),
    policy=st.lists(st.sampled_from(WAYS), unique=True, min_size=1).map(tuple),
    up=st.booleans(),
    failed=st.sets(st.sampled_from(WAYS)),
)
def test_a_plan_is_a_way_that_fits_or_says_why_not(
    vm_state: str, task: str | None, policy: tuple[str, ...], up: bool, failed: set[str]
) -> None:
    plan = plan_for(server(vm_state=vm_state, task_state=task), policy, host_is_up=up, failed=failed)
    if plan.way is None:
        assert plan.why
        assert plan.waits == (task is not None or vm_state == "building")
    else:
        assert task is None and plan.way in policy and plan.way not in failed
        assert vm_state in FITS[plan.way] and (plan.way == EVACUATE) != up


# ---- the course of it ----


@dataclass
class Played:
    """A cloud: a move takes ``lasts`` looks, unless it fails."""

    here: dict[str, Server]
    lasts: int = 2
    up: bool = True
    failing: dict[tuple[str, str], str] = field(default_factory=dict)  # server and way -> why
    refusing: dict[tuple[str, str], str] = field(default_factory=dict)
    silent: list[int] = field(default_factory=list)  # looks that nobody answers
    others: list[Move] = field(default_factory=list)
    looks: int = 0
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    most: int = 0
    _going: dict[str, tuple[str, int]] = field(default_factory=dict)
    _cold: dict[str, Move] = field(default_factory=dict)

    def host_is_up(self, host: str) -> bool:
        self.looks += 1
        if self.looks in self.silent:
            raise Silent("nobody there")
        for uuid, (way, left) in list(self._going.items()):
            self._going[uuid] = (way, left - 1)
            if left <= 0:
                self._arrive(uuid, way)
        return self.up

    def _arrive(self, uuid: str, way: str) -> None:
        del self._going[uuid]
        if (uuid, way) in self.failing:
            self.here[uuid] = changed(self.here[uuid], task_state=None)
            return
        del self.here[uuid]
        if way == COLD:
            self._cold[uuid] = Move(
                uuid=f"m-{uuid}", instance_uuid=uuid, kind="migration", status="finished", source="h1"
            )

    def servers(self, host: str) -> list[Server]:
        return list(self.here.values())

    def moves(self, host: str) -> list[Move]:
        going = [
            Move(uuid=f"m-{uuid}", instance_uuid=uuid, kind="live-migration", status="running", source=host)
            for uuid, (way, _) in self._going.items()
            if way == LIVE
        ]
        return [*going, *self._cold.values(), *self.others]

    def move(self, server: Server, way: str, target: str | None) -> str:
        if (server.uuid, way) in self.refusing:
            raise Refused(self.refusing[server.uuid, way])
        self.asked.append((server.uuid, way, target))
        self.here[server.uuid] = changed(server, task_state="migrating")
        self._going[server.uuid] = (way, self.lasts)
        self.most = max(self.most, len(self._going))
        return f"req-{len(self.asked)}"

    def confirm(self, uuid: str) -> None:
        self.confirmed.append(uuid)
        self._cold[uuid] = changed(self._cold[uuid], status="confirmed")

    def why(self, uuid: str, request_id: str) -> str:
        return next((why for (of, _), why in self.failing.items() if of == uuid), "")


@dataclass
class Heard:
    words: list[str] = field(default_factory=list)

    def began(self, server: Server, way: str) -> None:
        self.words.append(f"{server.name} begins {way}")

    def went(self, name: str, uuid: str, way: str, seconds: float) -> None:
        assert seconds > 0
        self.words.append(f"{name} went {way}")

    def failed(self, server: Server, way: str, why: str) -> None:
        self.words.append(f"{server.name} failed {way}: {why}")

    def now(self, left: int, under_way: int) -> None:
        pass

    def silent(self, why: str) -> None:
        self.words.append(why)


OPTIONS = Options(host="h1", policy=BOTH)


async def drained(cloud: Played, options: Options = OPTIONS, heard: Heard | None = None) -> Outcome:
    """Time passes as fast as it can."""
    clock = VirtualClock()
    running = asyncio.ensure_future(Drain(cloud, options, heard or Heard(), clock).run())
    for _ in range(10_000):
        await asyncio.sleep(0)
        if running.done():
            return running.result()
        clock.advance_to_next()
    running.cancel()
    raise AssertionError("it does not end")


def many(number: int, **more: Any) -> dict[str, Server]:
    return {each.uuid: each for each in (server(n, **more) for n in range(number))}


async def test_all_go_some_at_a_time() -> None:
    cloud, heard = Played(many(11)), Heard()
    outcome = await drained(cloud, replace_options(at_once=3, target="h7"), heard)
    assert outcome.empty and not cloud.here
    assert sorted(cloud.asked) == sorted((f"u{n}", LIVE, "h7") for n in range(11))
    assert cloud.most == 3
    assert sorted(word for word in heard.words if "went" in word) == sorted(
        f"s{n} went live" for n in range(11)
    )


def replace_options(**changes: Any) -> Options:
    return changed(OPTIONS, **changes)


async def test_those_that_are_off_go_cold_and_are_confirmed() -> None:
    cloud, heard = Played(many(3, vm_state="stopped")), Heard()
    outcome = await drained(cloud, heard=heard)
    assert outcome.empty and sorted(cloud.confirmed) == ["u0", "u1", "u2"]
    assert "s0 went cold" in heard.words


async def test_what_fails_is_tried_twice_and_then_another_way() -> None:
    cloud, heard = Played(many(1), failing={("u0", LIVE): "the link is cut"}), Heard()
    outcome = await drained(cloud, heard=heard)
    assert outcome.empty
    assert [way for _, way, _ in cloud.asked] == [LIVE] * TRIES + [COLD]
    assert heard.words.count("s0 failed live: the link is cut") == TRIES


async def test_what_is_refused_goes_another_way_at_once() -> None:
    cloud = Played(many(1), refusing={("u0", LIVE): "PCI devices"})
    assert (await drained(cloud)).empty
    assert [way for _, way, _ in cloud.asked] == [COLD]


async def test_what_cannot_go_is_named_and_the_others_go() -> None:
    cloud = Played({**many(2), "u9": server(9, "suspended")})
    outcome = await drained(cloud)
    assert not outcome.empty and not outcome.late
    assert outcome.left == {"s9": "it is suspended, and live and cold cannot move such a server"}
    assert list(cloud.here) == ["u9"]


async def test_a_server_that_fails_every_way_ends_it() -> None:
    cloud = Played(many(1), failing={("u0", LIVE): "x", ("u0", COLD): "y"})
    outcome = await drained(cloud)
    assert outcome.left == {"s0": "live and cold failed"}
    assert len(cloud.asked) == 2 * TRIES


async def test_the_time_is_up() -> None:
    cloud = Played(many(10), lasts=5)
    outcome = await drained(cloud, replace_options(at_once=1, deadline=8.0))
    assert outcome.late and not outcome.empty
    assert 0 < len(cloud.asked) < 4 and len(outcome.left) == len(cloud.here)
    again = await drained(cloud)  # begun again
    assert again.empty


async def test_a_cloud_that_does_not_answer_is_asked_again() -> None:
    cloud, heard = Played(many(2), silent=[1, 3, 4]), Heard()
    assert (await drained(cloud, heard=heard)).empty
    assert heard.words.count("nobody there") == 3
    assert len(cloud.asked) == 2


async def test_what_others_have_begun_is_waited_for_and_what_they_have_to_end_is_named() -> None:
    resize = Move(uuid="m1", instance_uuid="u5", kind="resize", status="finished", source="h1")
    come = Move(
        uuid="m2", instance_uuid="u6", kind="resize", status="finished", source="h2", destination="h1"
    )
    old = Move(uuid="m3", instance_uuid="u7", kind="live-migration", status="error", source="h1")
    outcome = await drained(Played(many(1), others=[resize, come, old]))
    assert outcome.waiting == ["the resize of u5 is to be confirmed or reverted"]
    assert not outcome.left and not outcome.empty


async def test_a_host_that_is_down_is_evacuated() -> None:
    cloud = Played({**many(2), "u9": server(9, "error")}, up=False)
    assert (await drained(cloud, replace_options(policy=(*BOTH, EVACUATE)))).empty
    assert {way for _, way, _ in cloud.asked} == {EVACUATE}


def test_a_plan_changes_nothing() -> None:
    cloud = Played(many(2))
    plans = Drain(cloud, OPTIONS, Heard(), VirtualClock()).plans()
    assert [(each.uuid, plan.way) for each, plan in plans] == [("u0", LIVE), ("u1", LIVE)]
    assert cloud.asked == []
