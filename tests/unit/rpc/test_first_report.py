"""What an agent says first is repeated until a controller has taken it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from kilonova.errors import Unreachable
from kilonova.rpc.desk import Welcome
from kilonova.rpc.nats_agent import AgentOnBus
from kilonova.testing.clock import VirtualClock


class Desk:
    """Is away for the first two reports."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def hello(self, report: Any, session: str) -> Welcome:
        self.told.append(report)
        if len(self.told) < 3:
            raise Unreachable("nobody is there")
        return Welcome(version="1.0", now=0)


class Impatient(VirtualClock):
    async def sleep(self, seconds: float) -> None:
        self.advance(seconds)


async def test_the_first_report_is_repeated_until_it_is_taken() -> None:
    """It alone says that the agent starts, and inventories may move between providers."""
    waiting, desk = ["first"], Desk()

    async def report() -> Any:
        return waiting.pop() if waiting else "later"

    serving: Any = SimpleNamespace(host="h1", session="s", report=report, guard=None, agent=None)
    link: Any = SimpleNamespace(options=SimpleNamespace(prefix="k"))
    agent = AgentOnBus(link, Impatient(), desk, serving, 10)
    await agent._say_hello()
    assert desk.told == ["first"] * 3
    await agent._say_hello()
    assert desk.told[3:] == ["later"]
