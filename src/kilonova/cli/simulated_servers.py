"""Servers for simulated hosts: booted through the Compute API as any client's, with a bar."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from kilonova.testing.http_client import Client

AT_ONCE = 64
LOOK = 1.0  # seconds between looks at what has become of them
TOKEN = 1800.0  # seconds after which another token is taken

console = Console(stderr=True)


class Session:
    """One user's way to the services of a cloud that a ``clouds.yaml`` (in JSON, as ours is) names."""

    def __init__(self, clouds_yaml: Path, cloud: str) -> None:
        try:
            self._auth: dict[str, Any] = json.loads(clouds_yaml.read_text())["clouds"][cloud]["auth"]
        except (OSError, ValueError, KeyError) as error:
            raise click.ClickException(f"{clouds_yaml} has no cloud '{cloud}': {error!r}") from error
        self._token = ""
        self._since = 0.0
        self._urls: dict[str, str] = {}

    async def client(self, service: str = "compute") -> Client:
        """A connection with a good token.  Raises ClickException when the cloud does not let us in."""
        if not self._token or time.monotonic() - self._since > TOKEN:
            await self._log_in()
        parts = urlsplit(self._urls[service])
        headers = {"X-Auth-Token": self._token, "OpenStack-API-Version": "compute 2.96"}
        return Client(str(parts.hostname), parts.port or 80, headers)

    async def _log_in(self) -> None:
        domain = {"name": "Default"}
        user = {"name": self._auth["username"], "password": self._auth["password"], "domain": domain}
        scope = {"project": {"name": self._auth["project_name"], "domain": domain}}
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}}
        parts = urlsplit(self._auth["auth_url"])
        login = Client(str(parts.hostname), parts.port or 80, {})
        try:
            status, answer, headers = await login.request("POST", "/v3/auth/tokens", body)
        except OSError as error:
            raise click.ClickException(f"{self._auth['auth_url']} does not answer: {error}") from error
        finally:
            login.close()
        if status != 201:
            raise click.ClickException(f"The cloud does not let us in: {status} {answer.decode()}")
        self._token, self._since = headers["x-subject-token"], time.monotonic()
        catalog = json.loads(answer)["token"]["catalog"]
        self._urls = {service["type"]: service["endpoints"][0]["url"] for service in catalog}

    async def get(self, path: str, service: str = "compute") -> Any:
        """Raises ClickException with what the service said."""
        client = await self.client(service)
        try:
            status, answer, _ = await client.request("GET", path)
        finally:
            client.close()
        if status != 200:
            raise click.ClickException(f"GET {path}: {status} {answer.decode()}")
        return json.loads(answer)


async def boot(session: Session, number: int, flavor: str, image: str, prefix: str = "sim") -> None:
    """Boot that many servers without networks; tell how fast, and how many failed."""
    images = (await session.get("/v2/images", "image"))["images"]
    chosen = next((each["id"] for each in images if image in ("", each["id"], each["name"])), None)
    if chosen is None:
        raise click.ClickException(f"There is no image '{image}': upload one first.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    began = time.monotonic()
    with Progress(*columns, console=console) as bars:
        accepted = bars.add_task("servers asked for", total=number)
        ended = bars.add_task("servers ACTIVE", total=number)
        body = {"imageRef": chosen, "flavorRef": flavor, "networks": "none"}
        asking = asyncio.create_task(_ask(session, number, body, prefix, bars, accepted))
        by_status = await _watch(session, asking, prefix, number, bars, ended)
    seconds = time.monotonic() - began
    shown = ", ".join(f"{count} {status}" for status, count in sorted(by_status.items()))
    console.print(f"servers: {shown}; {number / seconds:.1f} a second")


async def _ask(
    session: Session, number: int, body: dict[str, Any], prefix: str, bars: Progress, bar: TaskID
) -> None:
    numbers = iter(range(number))

    async def work() -> None:
        client = await session.client()
        for each in numbers:
            server = {**body, "name": f"{prefix}-{each:06}"}
            status, answer, _ = await client.request("POST", "/v2.1/servers", {"server": server})
            if status != 202:
                raise click.ClickException(f"A server was refused: {status} {answer.decode()}")
            bars.advance(bar)
        client.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(AT_ONCE, number)):
            group.create_task(work())


async def _watch(
    session: Session, asking: asyncio.Task[None], prefix: str, number: int, bars: Progress, bar: TaskID
) -> dict[str, int]:
    """How many servers have which status, when none is building any more."""
    while True:
        if asking.done() and (error := asking.exception()) is not None:
            first = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            raise first
        found = {status: await _count(session, prefix, status) for status in ("ACTIVE", "ERROR")}
        bars.update(bar, completed=found["ACTIVE"])
        if asking.done() and sum(found.values()) >= number:
            return {status: count for status, count in found.items() if count}
        await asyncio.sleep(LOOK)


async def _count(session: Session, prefix: str, status: str) -> int:
    path = f"/v2.1/servers?status={status}&name=^{prefix}-&limit=1000"
    total = 0
    while path:
        page = await session.get(path)
        total += len(page["servers"])
        links = {link["rel"]: link["href"] for link in page.get("servers_links", [])}
        path = "/v2.1" + links["next"].split("/v2.1", 1)[1] if "next" in links else ""
    return total
