from __future__ import annotations

import itertools
from typing import Any

import pytest

from kilonova.errors import HostFault, Invalid, Unreachable
from kilonova.model.flavor import Flavor
from kilonova.model.numa import GuestTopology
from kilonova.rpc import versions, wire
from kilonova.rpc.calls import NobodyThere
from kilonova.rpc.messages import Command, GuestSpec
from kilonova.rpc.nats_hosts import NatsHosts

FLAVOR = Flavor(id=1, flavorid="1", name="small", vcpus=1, memory_mb=64, root_gb=1)
PLAIN = GuestSpec(uuid="u1", name="n", hostname="n", project_id="p", flavor=FLAVOR)
WITH_NUMA = GuestSpec(
    uuid="u1", name="n", hostname="n", project_id="p", flavor=FLAVOR, numa=GuestTopology(cells=())
)
COMMAND = Command(id="c1")


class Asked:
    """A caller that notes what is asked, and may find nobody at a session."""

    def __init__(self, *gone: str) -> None:
        self.subjects: list[str] = []
        self.gone = set(gone)

    async def call(self, subject: str, verb: wire.Verb, arguments: dict[str, Any], whom: str) -> Any:
        self.subjects.append(subject)
        assert verb.decode(verb.encode(arguments))
        if subject.split(".")[3] in self.gone:
            raise NobodyThere(f"{whom} is not connected to the bus.")
        return None


def directory(
    caller: Asked, *sessions: tuple[str, str] | None, pin: str | None = None
) -> tuple[NatsHosts, list[str]]:
    """A directory whose database gives these, one after the other; and which hosts it was asked for."""
    answers, asked = itertools.chain(sessions, itertools.repeat(sessions[-1])), list[str]()

    async def session(host: str) -> tuple[str, str] | None:
        asked.append(host)
        return next(answers)

    return NatsHosts(caller, "kn", session, pin), asked  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "1", "1.", "x", "1.0.0", "-1.0", "1.0 ", "9999999.1", "\u0661.0"])
def test_what_is_no_version(text: str) -> None:
    with pytest.raises(Invalid, match="no version"):
        versions.parsed(text)


@pytest.mark.capability("RPC-3")
def test_a_pin_is_a_version_a_release_or_auto() -> None:
    assert versions.pinned("auto") is None and versions.pinned("") is None
    assert versions.pinned("1.0") == "1.0"
    assert versions.pinned("0.1") == versions.RELEASES["0.1"] == "1.0"
    for unknown in ("2.0", "1.99", "0.9", "wallaby", "1"):
        with pytest.raises(Invalid):
            versions.pinned(unknown)


@pytest.mark.capability("RPC-3", "RPC-4")
def test_the_lowest_of_agent_controller_and_pin_is_spoken() -> None:
    assert versions.usable("1.1", None) == "1.1"
    assert versions.usable("1.0", None) == "1.0"
    assert versions.usable("1.99", None) == versions.VERSION  # a newer agent
    assert versions.usable("1.1", "1.0") == "1.0"
    assert versions.usable("1.0", "1.1") == "1.0"


def test_which_agents_are_served() -> None:
    for served in ("1.0", versions.VERSION, "1.99"):
        versions.check_agent("h1", served)
    for refused in ("0.9", "2.0"):
        with pytest.raises(Invalid, match=f"'h1' speaks version {refused}.*upgrade"):
            versions.check_agent("h1", refused)


def test_older_than_the_oldest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "OLDEST", "1.1")
    with pytest.raises(Invalid, match=rf"1\.1 to {versions.VERSION}: upgrade the agent"):
        versions.check_agent("h1", "1.0")


@pytest.mark.capability("RPC-4")
async def test_an_agent_of_the_release_before_is_served_without_what_it_does_not_know() -> None:
    caller = Asked()
    hosts, _ = directory(caller, ("s1", "1.0"))
    agent = hosts.agent("h1")
    await agent.prepare(COMMAND, PLAIN)
    assert caller.subjects == ["kn.host.h1.s1.prepare"]
    with pytest.raises(
        HostFault, match=r"'h1' can be spoken to in version 1\.0.*GuestSpec\.numa.*needs 1\.1"
    ):
        await agent.prepare(COMMAND, WITH_NUMA)
    assert len(caller.subjects) == 1  # nothing was sent


@pytest.mark.capability("RPC-3")
async def test_a_pin_holds_for_new_agents_too() -> None:
    caller = Asked()
    hosts, _ = directory(caller, ("s1", "1.1"), pin="1.0")
    with pytest.raises(HostFault, match="upgrade_levels"):
        await hosts.agent("h1").prepare(COMMAND, WITH_NUMA)
    hosts, _ = directory(caller, ("s1", "1.1"))
    await hosts.agent("h1").prepare(COMMAND, WITH_NUMA)
    assert caller.subjects == ["kn.host.h1.s1.prepare"]


async def test_an_agent_that_does_not_tell_its_version_is_taken_for_the_oldest() -> None:
    hosts, _ = directory(Asked(), ("s1", ""))
    with pytest.raises(HostFault):
        await hosts.agent("h1").prepare(COMMAND, WITH_NUMA)


@pytest.mark.capability("RPC-2")
async def test_who_serves_as_a_host_is_asked_once_and_again_when_nobody_is_there() -> None:
    caller = Asked("s1")
    hosts, asked = directory(caller, ("s1", "1.1"), ("s2", "1.1"))
    agent = hosts.agent("h1")
    with pytest.raises(NobodyThere):
        await agent.destroy(COMMAND, "u1")
    await agent.destroy(COMMAND, "u1")
    await agent.destroy(COMMAND, "u1")
    assert [each.split(".")[3] for each in caller.subjects] == ["s1", "s1", "s2", "s2"]
    assert asked == ["h1", "h1"]


async def test_a_restarted_agent_is_found_within_the_call() -> None:
    caller = Asked()
    hosts, asked = directory(caller, ("s1", "1.1"), ("s2", "1.1"))
    agent = hosts.agent("h1")
    await agent.destroy(COMMAND, "u1")
    caller.gone.add("s1")
    await agent.destroy(COMMAND, "u1")
    assert [each.split(".")[3] for each in caller.subjects] == ["s1", "s1", "s2"]
    hosts.forget("h1")
    await agent.destroy(COMMAND, "u1")
    assert asked == ["h1"] * 3


@pytest.mark.capability("RPC-2")
@pytest.mark.parametrize("known", [None, ("", "1.1")])
async def test_a_host_of_which_nobody_has_heard(known: tuple[str, str] | None) -> None:
    hosts, _ = directory(Asked(), known)
    with pytest.raises(Unreachable, match="No agent has reported for the host 'h1'"):
        await hosts.agent("h1").observe("u1")
