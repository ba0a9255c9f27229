"""``kilonova up --driver fake`` as a process of its own, started and ended as a user would, or worse."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.http import Client
from kilonova.testing import audit
from kilonova.testing.ports import free_offset

PATIENCE = 120.0  # seconds for anything, on a busy machine
KILONOVA = str(Path(sys.executable).with_name("kilonova"))
CHEAP = "[quota]\ninstances = -1\ncores = -1\nram = -1\n[identity]\npassword_hash_rounds = 1\n"
PROMISED = 5.0  # seconds from SIGTERM to the end; status 0 says that it was in time by the cloud's own clock
BUSY = 2  # times as long may it take on a busy machine
CREATE = {"imageRef": "", "flavorRef": "42", "networks": "auto"}


class Cloud:
    """One state directory, and the process on it when there is one."""

    def __init__(self, state_dir: Path, config: str = "", *, before: Sequence[str] = ()) -> None:
        self.state_dir = state_dir
        self.offset = free_offset()
        self.before = list(before)  # a command that runs the command
        self.config = state_dir.with_suffix(".conf")
        self.configure(config)
        self.process: subprocess.Popen[str] | None = None
        self.out: list[str] = []
        self.errors: list[str] = []
        self._readers: list[threading.Thread] = []
        self._line = threading.Condition()
        self._token: dict[str, str] = {}

    def configure(self, config: str) -> None:
        """What the next start is told."""
        self.config.write_text(CHEAP + config)

    # ---- the process ----

    def spawn(self, *more: str) -> None:
        """Start it and come back at once."""
        command = [*self.before, KILONOVA, "up", "--driver", "fake", "--state-dir", str(self.state_dir)]
        command += ["--port-offset", str(self.offset), "--config-file", str(self.config), *more]
        self.out, self.errors, self._token = [], [], {}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            with self._line:
                lines.append(line.rstrip("\n"))
                self._line.notify_all()
        with self._line:
            self._line.notify_all()

    def wait_for(self, beginning: str, *, of: str = "out") -> str:
        """The first line that begins so.  Fails when the process ends without it."""
        lines: list[str] = getattr(self, of)
        deadline = time.monotonic() + PATIENCE
        with self._line:
            while True:
                for line in lines:
                    if line.startswith(beginning):
                        return line
                assert self.process is not None
                alive = any(reader.is_alive() for reader in self._readers)
                assert alive and time.monotonic() < deadline, (self.process.poll(), self.out, self.errors)
                self._line.wait(1)

    def start(self) -> float:
        """Seconds until it is ready."""
        began = time.monotonic()
        self.spawn()
        self.wait_for("ready")
        return time.monotonic() - began

    def end(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Its exit status after a signal, and how many seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        return self.ended(), time.monotonic() - began

    def ended(self) -> int:
        """The exit status, when it ends by itself."""
        assert self.process is not None
        status = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        assert self.process.stdout is not None and self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return status

    def kill(self) -> None:
        """SIGKILL."""
        assert self.end(signal.SIGKILL)[0] == -signal.SIGKILL

    def stop(self) -> None:
        """An orderly end, in time."""
        status, seconds = self.end()
        assert status == 0, self.errors
        assert seconds < BUSY * PROMISED

    def clear(self) -> None:
        """Leave no process behind, whatever the test did."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.ended()

    def memory(self) -> float:
        """Resident MiB."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    # ---- what clients see ----

    async def client(self, cloud: str = "kilonova", service: str = "compute") -> Client:
        """A connection with a token."""
        auth = json.loads((self.state_dir / "clouds.yaml").read_text())["clouds"][cloud]["auth"]
        domain = {"name": "Default"}
        user = {"name": auth["username"], "password": auth["password"], "domain": domain}
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {"name": auth["project_name"], "domain": domain}},
            }
        }
        if cloud not in self._token:
            login = Client("127.0.0.1", int(auth["auth_url"].split(":")[2].split("/")[0]), {})
            status, answer, headers = await login.request("POST", "/v3/auth/tokens", body)
            login.close()
            assert status == 201, answer
            self._token[cloud] = headers["x-subject-token"]
        return self.connection(cloud, service)

    def connection(self, cloud: str = "kilonova", service: str = "compute") -> Client:
        """One more connection with a token that is there."""
        port = {"compute": 8774, "image": 9292, "network": 9696}[service] + self.offset
        headers = {"X-Auth-Token": self._token[cloud], "OpenStack-API-Version": "compute 2.96"}
        return Client("127.0.0.1", port, headers)

    async def image(self) -> str:
        client = await self.client(service="image")
        images = (await got(client, "/v2/images"))["images"]
        client.close()
        return str(images[0]["id"])

    async def servers(self) -> dict[str, dict[str, Any]]:
        """All servers of all projects, by id."""
        client = await self.client("kilonova-admin")
        found = (await got(client, "/v2.1/servers/detail?all_tenants=1&limit=1000"))["servers"]
        client.close()
        return {each["id"]: each for each in found}

    async def settled(self) -> dict[str, dict[str, Any]]:
        """All servers, once nothing is going on with any of them."""
        async with asyncio.timeout(PATIENCE):
            while True:
                servers = await self.servers()
                if all(each["OS-EXT-STS:task_state"] is None for each in servers.values()):
                    return servers
                await asyncio.sleep(0.1)

    # ---- what is in the state directory ----

    async def stopped(self) -> audit.State:
        return await audit.stopped(self.state_dir)

    def starts(self) -> dict[str, int]:
        """How often each guest has been started, by the hypervisor's own file."""
        return self._guests("starts")

    def guests(self) -> dict[str, int]:
        """The power state of each guest; -1: only its disks are there."""
        return self._guests("state")

    def _guests(self, column: str) -> dict[str, int]:
        path = self.state_dir / "agent" / "fake-guests.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as file:
            return dict(file.execute(f"SELECT uuid, {column} FROM guests").fetchall())  # noqa: S608


async def got(client: Client, path: str) -> Any:
    status, body, _ = await client.request("GET", path)
    assert status == 200, body
    return json.loads(body)


class Load:
    """Clients that ask for servers, or their end, and remember what they were answered."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.asked: list[str] = []  # names
        self.accepted: dict[str, str] = {}  # id -> name
        self.unwanted: set[str] = set()  # ids whose deletion was asked for: one unheard may have been done
        self.deleted: set[str] = set()  # ids whose deletion was accepted
        self.refused: list[tuple[int, bytes]] = []

    async def boot(self, name: str, image: str, client: Client) -> None:
        self.asked.append(name)
        body = {"server": {**CREATE, "name": name, "imageRef": image}}
        status, answer, _ = await client.request("POST", "/v2.1/servers", body)
        if status == 202:
            self.accepted[json.loads(answer)["server"]["id"]] = name
        else:
            self.refused.append((status, answer))

    async def boots(self, number: int, image: str, *, prefix: str = "s", at_once: int = 8) -> None:
        """Ask for servers until the process is gone."""
        names = iter([f"{prefix}{index}" for index in range(number)])

        async def work() -> None:
            client = self.cloud.connection()
            with gone(), contextlib.closing(client):
                for name in names:
                    await self.boot(name, image, client)

        await asyncio.gather(*(work() for _ in range(at_once)))

    async def deletes(self, ids: Sequence[str], *, at_once: int = 8) -> None:
        rest = iter(ids)

        async def work() -> None:
            client = self.cloud.connection()
            with gone(), contextlib.closing(client):
                for uuid in rest:
                    self.unwanted.add(uuid)
                    status, answer, _ = await client.request("DELETE", f"/v2.1/servers/{uuid}")
                    if status == 204:
                        self.deleted.add(uuid)
                    else:
                        self.refused.append((status, answer))

        await asyncio.gather(*(work() for _ in range(at_once)))


async def when(condition: Callable[[], bool]) -> None:
    """Come back as soon as the condition holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def gone() -> Iterator[None]:
    """The process may die under us: what was asked is unanswered then."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        yield


def is_root() -> bool:
    return os.geteuid() == 0
