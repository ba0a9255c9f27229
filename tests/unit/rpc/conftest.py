"""A real nats-server, and links to it on a clock that runs twenty times as fast."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from kilonova.rpc import subjects
from kilonova.rpc.nats_link import BusOptions, Link
from kilonova.testing.bus import NatsServer
from kilonova.testing.clock import FastClock

LinkTo = Callable[..., Awaitable[Link]]


@pytest.fixture(scope="session")
def shared_bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.clear()


@pytest.fixture
def own_bus(tmp_path: Path) -> Iterator[NatsServer]:
    """For tests that kill it, or configure it."""
    server = NatsServer(tmp_path / "nats")
    yield server
    server.clear()


@pytest.fixture
def fast() -> FastClock:
    return FastClock()


@pytest.fixture
async def link_to(fast: FastClock) -> AsyncIterator[LinkTo]:
    """Opens links: ``await link_to(url)``; with a host's name its inbox is that host's."""
    made: list[Link] = []

    async def link(url: str, host: str = subjects.CONTROLLERS, *, wait: bool = True, **more: object) -> Link:
        silence = float(more.pop("silence", 5.0))  # type: ignore[arg-type]
        options = BusOptions(servers=(url,), prefix="kn", **more)  # type: ignore[arg-type]
        found = Link(options, fast, host, subjects.inbox("kn", host), silence=silence)
        made.append(found)
        found.open()
        if wait:
            await found.wait(20)
        return found

    yield link
    for each in made:
        await each.close()
