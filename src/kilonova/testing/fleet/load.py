"""Clients of a fleet that go on when a controller dies under them: they ask the next one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

from kilonova.testing.fleet.fleet import Fleet
from kilonova.testing.http_client import Client

PAUSE = 0.2  # seconds before the next controller is asked
LOOK = 0.5  # seconds between looks at what has become of the servers
GONE = (OSError, asyncio.IncompleteReadError, RuntimeError)

Progress = Callable[[int], None]


def _ignored(number: int) -> None:
    return None


class Load:
    """Boots and deletes servers through all controllers; names are unique, so that what was not answered can
    be found again."""

    def __init__(self, fleet: Fleet, image: str, *, flavor: str = "1", networks: Any = "auto") -> None:
        self.fleet = fleet
        self._about = {"imageRef": image, "flavorRef": flavor, "networks": networks}
        self._turn = 0
        self.accepted: dict[str, str] = {}  # name -> id
        self.refused: list[tuple[int, bytes]] = []

    async def boot(self, names: Iterable[str], *, at_once: int = 16, progress: Progress = _ignored) -> None:
        """Have a server of each name, whatever it takes; ``progress`` hears how many were accepted."""
        waiting = iter(list(names))

        async def work() -> None:
            for name in waiting:
                await self._boot(name)
                progress(len(self.accepted))

        await asyncio.gather(*(work() for _ in range(at_once)))

    async def _boot(self, name: str) -> None:
        body = {"server": {**self._about, "name": name}}
        first = True
        while True:
            if not first and (known := await self._find(name)):
                self.accepted[name] = known
                return
            first = False
            status, answer = await self._ask("POST", "/v2.1/servers", body)
            if status == 202:
                self.accepted[name] = json.loads(answer)["server"]["id"]
                return
            if status and status < 500:
                self.refused.append((status, answer))
                return
            await asyncio.sleep(PAUSE)

    async def _find(self, name: str) -> str | None:
        """The id of a server of that name, if one was made although nobody could tell us."""
        while True:
            status, answer = await self._ask("GET", f"/v2.1/servers?name=^{name}$")
            if status == 200:
                found = json.loads(answer)["servers"]
                return str(found[0]["id"]) if found else None
            await asyncio.sleep(PAUSE)

    async def delete(self, ids: Iterable[str], *, at_once: int = 16) -> None:
        """Have them deleted, whatever it takes; it may go on after that."""
        waiting = iter(list(ids))

        async def work() -> None:
            for uuid in waiting:
                await self._delete(uuid)

        await asyncio.gather(*(work() for _ in range(at_once)))

    async def _delete(self, uuid: str) -> None:
        while True:
            status, _ = await self._ask("DELETE", f"/v2.1/servers/{uuid}")
            if status in (204, 404):
                return
            await asyncio.sleep(PAUSE)

    async def settled(
        self, *, seconds: float = 120.0, progress: Progress = _ignored
    ) -> dict[str, dict[str, Any]]:
        """All servers by id, once nothing goes on with any; ``progress`` hears how many are ACTIVE.

        Raises TimeoutError.
        """
        async with asyncio.timeout(seconds):
            while True:
                servers = await self.servers()
                progress(sum(each["status"] == "ACTIVE" for each in servers.values()))
                if all(each["OS-EXT-STS:task_state"] is None for each in servers.values()):
                    return servers
                await asyncio.sleep(LOOK)

    async def servers(self) -> dict[str, dict[str, Any]]:
        """All servers by id, from whichever controller answers."""
        while True:
            self._turn += 1
            try:
                return await self.fleet.servers(self._turn % len(self.fleet.controllers))
            except GONE:
                await asyncio.sleep(PAUSE)

    async def _ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body; 0 where nobody answered."""
        self._turn += 1
        client: Client | None = None
        try:
            async with asyncio.timeout(30):
                client = await self.fleet.client(self._turn % len(self.fleet.controllers), cloud="kilonova")
                status, answer, _ = await client.request(method, path, body)
        except (*GONE, TimeoutError):
            return 0, b""
        finally:
            if client is not None:
                client.close()
        return status, answer
