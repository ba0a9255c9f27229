"""Hosts of all cells, reached from any: what a move between two cells speaks to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from kilonova.rpc.host import HostAgent, HostDirectory
from kilonova.rpc.mover import Mover

Find = Callable[[str], Awaitable[HostDirectory]]
"""Host -> the directory of its cell.  Raises Unreachable for a host or a cell that is not known."""


class HostsOfCells:
    """A HostDirectory that looks for the cell of a host when it is spoken to."""

    def __init__(self, find: Find) -> None:
        self._find = find

    def agent(self, host: str) -> HostAgent:
        return cast(HostAgent, _Verbs(host, self._find, lambda hosts: hosts.agent(host)))

    def mover(self, host: str) -> Mover:
        return cast(Mover, _Verbs(host, self._find, lambda hosts: hosts.mover(host)))


class _Verbs:
    """All verbs of a protocol, each of which is a coroutine function."""

    def __init__(self, host: str, find: Find, of: Callable[[HostDirectory], Any]) -> None:
        self._host = host
        self._find = find
        self._of = of

    def __getattr__(self, verb: str) -> Callable[..., Awaitable[Any]]:
        if verb.startswith("_"):
            raise AttributeError(verb)

        async def ask(*arguments: Any, **named: Any) -> Any:
            hosts = await self._find(self._host)
            return await getattr(self._of(hosts), verb)(*arguments, **named)

        return ask
