"""Who serves as a host: one life of one agent, however many there are and however they end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from kilonova.clock import SECOND
from kilonova.db import hosts
from kilonova.errors import Conflict, Invalid, LostLease, NotFound, Unreachable
from kilonova.model.states import Vm
from kilonova.rpc import nats_desk, subjects, versions
from kilonova.rpc.calls import NobodyThere
from kilonova.rpc.desk import Alive
from kilonova.rpc.messages import Command
from kilonova.testing.bus import NatsServer, when, when_so
from kilonova.testing.clock import FastClock
from kilonova.testing.embedded import member, settled
from tests.crash.scenes import boot
from tests.fleet.house import PREFIX, House, house_of

pytestmark = pytest.mark.postgresql

HOUR = 3600 * SECOND


@pytest.fixture
async def house(request: pytest.FixtureRequest, own_bus: NatsServer, tmp_path: Path) -> AsyncIterator[House]:
    async with house_of(request, own_bus, tmp_path) as made:
        yield made


@pytest.mark.capability("RPC-1", "RPC-2")
async def test_servers_are_made_and_removed_over_the_bus_with_the_rights_of_its_users(house: House) -> None:
    agents = [await house.agent("h1"), await house.agent("h2")]
    cloud: Any = house.controller
    cloud.example_image = await example_image(house)
    booted = [await boot(cloud, f"s{number}") for number in range(6)]
    for uuid in booted:
        assert (await settled(cloud, uuid)).vm_state == Vm.ACTIVE
    guests = [each.parts.driver.guest_file.everything() for each in agents]  # type: ignore[union-attr]
    assert sorted(uuid for each in guests for uuid in each) == sorted(booted)
    assert all(guests)  # both have some
    assert "Permissions Violation" not in house.bus.log


async def example_image(house: House) -> str:
    cloud: Any = house.controller
    administrator = msgspec.structs.replace(
        member(cloud),
        user_id=cloud.accounts.users["admin"],
        project_id=cloud.accounts.projects["admin"],
        roles=frozenset({"admin"}),
    )
    image = await house.controller.image.add_local(administrator, "small", bytes(1 << 20))
    return str(image.id)


async def test_the_next_call_finds_the_next_life_of_an_agent(house: House) -> None:
    first = await house.agent("h1")
    hands = house.controller.hosts.agent("h1")
    assert (await hands.observe("u1")).power_state == 0
    await house.stop(first)
    with pytest.raises(NobodyThere):
        await hands.observe("u1")
    second = await house.agent("h1")
    assert second.session != first.session
    assert (await hands.observe("u1")).power_state == 0
    with pytest.raises(Unreachable, match="No agent has reported for the host 'h2'"):
        await house.controller.hosts.agent("h2").observe("u1")


async def test_a_host_of_that_name_with_another_compute_id_is_refused(house: House) -> None:
    first = await house.agent("h1")
    second = house.assemble("h1", "stolen-name")
    with pytest.raises(
        Conflict, match=r"'h1' reports as compute node .* is known as .*: give it back its name"
    ):
        await second.start()
    await house.served_by(first)
    assert (await house.controller.hosts.agent("h1").observe("u1")).power_state == 0
    assert not first.over.is_set()


async def test_of_two_agents_with_one_compute_id_the_first_ends_with_the_reason(house: House) -> None:
    first = await house.agent("h1")
    (house.directory / "copy").mkdir()
    shutil.copy(house.directory / "h1-state" / "compute_id", house.directory / "copy")
    second = await house.agent("h1", "copy")
    await when(first.over.is_set)
    assert "must not share a name or a state directory" in first.why
    await house.served_by(second)
    assert not second.over.is_set()


async def test_a_host_whose_service_was_deleted_reports_again(house: House) -> None:
    agent = await house.agent("h1")
    before = await house.host("h1")
    await house.controller.db.write(lambda tx: hosts.remove(tx, "h1"))
    await house.served_by(agent)
    after = await house.host("h1")
    assert before is not None and after is not None
    assert after.service_uuid != before.service_uuid and after.compute_id == before.compute_id


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_wrong_clock_is_told_and_does_no_harm(house: House, hours: int) -> None:
    clock = FastClock(1)
    clock.wrong = hours * HOUR
    with capture_logs() as logs:
        agent = await house.agent("h1", clock=clock)
        await when(lambda: [each for each in logs if "clocks of this host" in each["event"]])
        found = [each for each in logs if "clocks of this host" in each["event"]]
        assert [each["log_level"] for each in found] == ["warning"]
        assert abs(found[0]["seconds"] - hours * 3600) < 60
        beats = (await house.host("h1")).report_count  # type: ignore[union-attr]

        async def goes_on() -> bool:
            known = await house.host("h1")
            return known is not None and known.report_count > beats

        await when_so(goes_on)
        known = await house.host("h1")
        assert known is not None and hosts.is_up(known, house.controller.clock.now(), 10)
        clock.wrong = 0
        await when(
            lambda: [each for each in logs if each["log_level"] == "info" and "clocks" in each["event"]]
        )
        assert not agent.over.is_set()


async def test_an_agent_that_does_not_hear_takes_a_new_connection(house: House) -> None:
    agent = await house.agent("h1")
    hands = house.controller.hosts.agent("h1")
    await hands.observe("u1")
    for each in agent.link._subscribed.values():
        if each.subject.startswith(f"{PREFIX}.host."):  # lost at the server; the connection is up
            assert each.current is not None
            await each.current.unsubscribe()
    back = asyncio.Event()
    agent.link.on_back.append(back.set)
    with capture_logs() as logs:
        await asyncio.wait_for(back.wait(), 30)
    assert "no echo is heard; the connection is made anew" in [each["event"] for each in logs]
    assert (await hands.observe("u1")).power_state == 0


async def test_an_agent_outlives_the_bus(house: House) -> None:
    agent = await house.agent("h1")
    house.bus.kill()
    await when(lambda: not agent.link.connected and not house.controller.link.connected)
    house.bus.start()
    await when(lambda: agent.link.connected and house.controller.link.connected)
    assert (await house.controller.hosts.agent("h1").observe("u1")).power_state == 0
    await house.served_by(agent)


async def test_a_command_of_who_was_overtaken_is_refused_also_after_a_restart(house: House) -> None:
    agent = await house.agent("h1")
    hands = house.controller.hosts.agent("h1")
    await hands.discard(Command(id="5.2", action=5, epoch=2), "u1")
    late = Command(id="5.1", action=5, epoch=1)
    with pytest.raises(
        LostLease, match=r"Operation 5 \(epoch 1\) of server u1 was overtaken by 5 \(epoch 2\)"
    ):
        await hands.discard(late, "u1")
    await hands.discard(late, "u2")  # another guest's operations are another matter
    await house.stop(agent)
    await house.agent("h1")
    with pytest.raises(LostLease):
        await hands.discard(late, "u1")
    await hands.discard(Command(id="6.1", action=6, epoch=1), "u1")


# ---- agents that do not keep to the rules ----


async def ask(agent: Any, verb: str, **arguments: Any) -> Any:
    """Ask the controllers as the agent of a host could if it were changed."""
    subject = subjects.from_host(PREFIX, agent.host, verb)
    return await agent.caller.call(subject, nats_desk.VERBS[verb], arguments, "The controller")


async def test_reports_that_are_refused_with_the_reason(house: House) -> None:
    agent = await house.agent("h1")
    assert agent.parts is not None
    report = msgspec.structs.replace(agent.parts.reports.latest, version=versions.VERSION)
    old = msgspec.structs.replace(report, version="0.9")
    with pytest.raises(Invalid, match=r"'h1' speaks version 0\.9 .* this controller .*upgrade the agent"):
        await ask(agent, "hello", report=old, session=agent.session, again=False)
    with capture_logs() as logs, pytest.raises(NotFound, match="You are the host 'h1' and none other"):
        await ask(
            agent, "hello", report=msgspec.structs.replace(report, host="h2"), session="s2", again=False
        )
    assert "an agent reports as another host" in [each["event"] for each in logs]
    for session in ("", "a.b", "s\r\nPUB kn.host.h2.s.x 0"):
        with pytest.raises(Invalid, match="session"):
            await ask(agent, "hello", report=report, session=session)
    known = await house.host("h1")
    assert known is not None and known.session == agent.session and known.version == versions.VERSION
    assert await house.host("h2") is None


async def test_an_agent_of_the_release_before_is_served(house: House) -> None:
    agent = await house.agent("h1")
    assert agent.parts is not None
    older = msgspec.structs.replace(agent.parts.reports.latest, version=versions.OLDEST)
    assert (await ask(agent, "hello", report=older, session=agent.session)).version == versions.VERSION
    known = await house.host("h1")
    assert known is not None and known.version == versions.OLDEST
    assert (await house.controller.hosts.agent("h1").observe("u1")).power_state == 0


async def test_news_of_a_host_tell_its_version_too(house: House) -> None:
    agent = await house.agent("h1")
    assert agent.parts is not None
    await agent.desk.hello(msgspec.structs.replace(agent.parts.reports.latest, version=""), agent.session)
    known = await house.host("h1")
    assert known is not None and known.version == versions.VERSION


async def test_news_of_an_agent_that_was_replaced_do_not_bring_it_back(house: House) -> None:
    first = await house.agent("h1")
    assert first.parts is not None
    report = first.parts.reports.latest
    await first.desk.hello(report, first.session, again=True)
    (house.directory / "copy").mkdir()
    shutil.copy(house.directory / "h1-state" / "compute_id", house.directory / "copy")
    second = await house.agent("h1", "copy")
    with pytest.raises(Conflict, match="does not serve as the host 'h1' any more"):
        await first.desk.hello(report, first.session, again=True)
    await house.served_by(second)
    await house.controller.db.write(lambda tx: hosts.remove(tx, "h1"))
    with pytest.raises(Conflict):
        await second.desk.hello(report, second.session, again=True)


async def test_controllers_speak_for_nobody(house: House) -> None:
    """An answer goes to the inbox of the one who asks, whatever that one would like."""
    agent, other = await house.agent("h1"), await house.agent("h2")
    heard: list[str] = []
    for link, subject in (
        (other.link, f"{PREFIX}.inbox.h2.x.*"),
        (other.link, f"{PREFIX}.host.h2.x.*"),
        (agent.link, f"{PREFIX}.inbox.h1.x.*"),
    ):
        await link.subscribe(subject, lambda subject, data, reply: heard.append(subject))
        assert link._client is not None
        await link._client.flush()
    question = nats_desk.VERBS["port"].encode({"port_id": "p1"})
    with capture_logs() as logs:
        for reply in (f"{PREFIX}.inbox.h2.x.1", f"{PREFIX}.host.h2.x.destroy", f"{PREFIX}.inbox.h1.x.1"):
            await agent.link.publish(f"{PREFIX}.from.h1.port", question, reply)
        await when(lambda: heard)
    assert heard == [f"{PREFIX}.inbox.h1.x.1"]
    assert len([each for each in logs if "which is not its own" in str(each.get("error"))]) == 2


async def test_signs_of_life_that_are_none_are_left_out_and_the_next_is_heard(house: House) -> None:
    agent = await house.agent("h1")
    subject = f"{PREFIX}.from.h1.alive"
    signs = [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"session": "s"}),
        msgspec.msgpack.encode(Alive(session="s\r\nPUB kn.host.h2.s.x 0", sequence=1, now=0)),
        msgspec.msgpack.encode(Alive(session="*", sequence=1, now=0)),
    ]
    with capture_logs() as logs:
        for each in signs:
            await agent.link.publish(subject, each)
        await when(
            lambda: len([each for each in logs if each["event"] == "a message is refused"]) == len(signs)
        )
    await ask(agent, "port", port_id="p1")
    await house.served_by(agent)


async def test_an_agent_hears_the_next_message_after_a_malformed_one(house: House) -> None:
    agent = await house.agent("h1")
    with capture_logs() as logs:
        for verb in ("echo", "changed", "observe", "fly"):
            await house.controller.link.publish(f"{PREFIX}.host.h1.{agent.session}.{verb}", b"\xc1")
        await when(
            lambda: (
                len([each for each in logs if "malformed" in each["event"] or "refused" in each["event"]])
                == 4
            )
        )
    assert (await house.controller.hosts.agent("h1").observe("u1")).power_state == 0


async def test_an_agent_whose_key_is_of_another_host_serves_nobody(house: House) -> None:
    shutil.copy(house.directory / "h2" / "agent.nk", house.directory / "h1" / "agent.nk")
    agent = house.assemble("h1")
    with capture_logs() as logs:
        starting = asyncio.ensure_future(agent.start())
        await when(
            lambda: [each for each in logs if "permissions violation" in str(each.get("error")).lower()]
        )
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
    assert await house.host("h1") is None
