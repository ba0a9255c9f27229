"""The in-process carrier: the agent is an object next door."""

from __future__ import annotations

from typing import Protocol

from kilonova.errors import Unreachable
from kilonova.rpc.host import HostAgent
from kilonova.rpc.mover import Mover


class Hands(HostAgent, Protocol):
    """An agent with everything that it does."""

    @property
    def mover(self) -> Mover: ...


class LocalHosts:
    """A HostDirectory of agents in this process."""

    def __init__(self) -> None:
        self._hands: dict[str, Hands] = {}

    def add(self, host: str, hands: Hands) -> None:
        self._hands[host] = hands

    def agent(self, host: str) -> HostAgent:
        return self._known(host)

    def mover(self, host: str) -> Mover:
        return self._known(host).mover

    def _known(self, host: str) -> Hands:
        found = self._hands.get(host)
        if found is None:
            raise Unreachable(f"The host '{host}' has no agent in this process.")
        return found
