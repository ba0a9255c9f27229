"""The in-process carrier: the agent is an object next door."""

from __future__ import annotations

from kilonova.errors import Unreachable
from kilonova.rpc.host import HostAgent


class LocalHosts:
    """A HostDirectory of agents in this process."""

    def __init__(self) -> None:
        self._agents: dict[str, HostAgent] = {}

    def add(self, host: str, agent: HostAgent) -> None:
        self._agents[host] = agent

    def agent(self, host: str) -> HostAgent:
        found = self._agents.get(host)
        if found is None:
            raise Unreachable(f"The host '{host}' has no agent in this process.")
        return found
