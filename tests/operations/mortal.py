"""Hosts whose agents are killed, cut off or without power in the middle of what they do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, cast

from kilonova.clock import SECOND
from kilonova.errors import Unreachable
from kilonova.rpc.local import Hands
from kilonova.testing.simulated_hosts import SimulatedHost, _add
from tests.operations.live_hosts import Live

LONG_AGO = 10**6 * SECOND


class Wire:
    """The way to an agent: what goes over it when it is cut is not heard of any more."""

    def __init__(self, hands: Any) -> None:
        self.hands = hands
        self.whole = True
        self.mover = _Asking(self, lambda: self.hands.mover)
        self._calls: set[asyncio.Task[Any]] = set()
        self._lost = asyncio.Event()

    def __getattr__(self, verb: str) -> Any:
        return lambda *given, **named: self.ask(getattr(self.hands, verb), *given, **named)

    async def ask(self, verb: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if not self.whole:
            raise Unreachable("The host does not answer.")
        task = asyncio.ensure_future(verb(*given, **named))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        lost = asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait({task, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not self.whole or not task.done():
                raise Unreachable("The host has ceased to answer.")
            return task.result()
        except asyncio.CancelledError:
            task.cancel()  # whoever asks in this process takes its question with it
            raise
        finally:
            lost.cancel()

    async def cut(self, *, kill: bool) -> None:
        """``kill``: what is done there ends, too."""
        self.whole = False
        self._lost.set()
        if kill:
            calls = tuple(self._calls)
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    def mend(self, hands: Any = None) -> None:
        self.hands = hands or self.hands
        self.whole = True
        self._lost = asyncio.Event()


class _Asking:
    def __init__(self, wire: Wire, target: Callable[[], Any]) -> None:
        self._wire = wire
        self._target = target

    def __getattr__(self, verb: str) -> Any:
        return lambda *given, **named: self._wire.ask(getattr(self._target(), verb), *given, **named)


class Mortals:
    """What may become of the hosts of a cloud."""

    def __init__(self, three: Live) -> None:
        self.three = three
        self.wires = {name: Wire(host.agent) for name, host in three.hosts.items()}
        for name, wire in self.wires.items():
            three.cloud.local.add(name, cast(Hands, wire))

    async def kill_controller(self) -> None:
        """Its operations break off where they are; another one takes them over, and has read nothing yet."""
        runner = self.three.cloud.runner
        tasks = [task for _, task in runner._running.values()]
        await asyncio.sleep(0)  # also those that have just been taken up have begun
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def silence(self, name: str) -> None:
        await self.wires[name].cut(kill=False)

    async def kill_agent(self, name: str) -> None:
        await self.wires[name].cut(kill=True)
        await self.three.hosts[name].agent.shut_down_agent()

    async def lose_power(self, name: str) -> None:
        await self.wires[name].cut(kill=True)
        self.three.live(name).power_cut()
        await self.three.set_seen(name, self.three.cloud.clock.now() - LONG_AGO)

    async def heard_again(self, name: str) -> None:
        self.wires[name].mend()
        await self.three.set_seen(name, self.three.cloud.clock.now())

    async def new_agent(self, name: str) -> None:
        """On the same hypervisor and the same switch."""
        old = self.three.hosts[name]
        new: SimulatedHost = await _add(self.three.cloud, name, int(name[1:]) - 2, 1_000_000)
        new.plugger._plugged = old.plugger._plugged
        new.driver.storage = old.driver.storage
        new.driver.live.rate = old.driver.live.rate
        self.three.hosts[name] = new
        self.three.cloud.local.add(name, cast(Hands, self.wires[name]))
        self.wires[name].mend(new.agent)

    async def end(self) -> None:
        for name, wire in self.wires.items():
            with contextlib.suppress(Exception):
                await wire.cut(kill=True)
            if name != "h1":
                with contextlib.suppress(Exception):
                    await self.three.hosts[name].agent.shut_down_agent()
