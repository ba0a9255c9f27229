"""A cloud of many hosts on this machine: PostgreSQL, NATS, controllers, simulated hosts; all processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kilonova.settings import PORTS
from kilonova.testing.fleet.cable import Cable
from kilonova.testing.fleet.daemon import Daemon
from kilonova.testing.fleet.servers import NatsServer, PostgresServer
from kilonova.testing.http_client import Client
from kilonova.testing.ports import free_offset, free_port

DATABASE = "kilonova"
APART = 100  # by which the ports of one controller differ from the next one's

CONFIG = """\
[DEFAULT]
report_interval = {report_interval}
service_down_time = {service_down_time}
[nats]
servers = {url}
[journal]
lease = {lease}
[quota]
instances = -1
cores = -1
ram = -1
{more}
"""
CONTROLLERS = """
[database]
connection = {conninfo}
[fernet_tokens]
key_repository = {directory}/keys
[glance_store]
filesystem_store_datadir = {directory}/images
[volume]
directory = {directory}/volumes
[identity]
password_hash_rounds = 1
[catalog]
port_offset = {offset}
"""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds."""

    report_interval: int = 2
    service_down_time: int = 10
    lease: float = 5.0


NORMAL = Pace()


class Fleet:
    """``up`` starts all; each part can be killed, paused and started again by itself."""

    def __init__(
        self,
        directory: Path,
        *,
        controllers: int = 2,
        offset: int | None = None,
        pace: Pace = NORMAL,
        more: str = "",
        safe: bool = True,
        wired: tuple[int, ...] = (),
        bus_address: str = "127.0.0.1",
    ) -> None:
        """``wired`` are the controllers that reach their database and bus over cables, which can be cut."""
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        self.directory = directory
        self.offset = offset = (
            free_offset(APART * number for number in range(controllers)) if offset is None else offset
        )
        self.postgres = PostgresServer(directory / "postgres", safe=safe)
        self.nats = NatsServer(directory / "nats", address=bus_address)
        values = {
            **msgspec.structs.asdict(pace),
            "url": self.nats.url,
            "conninfo": self.postgres.conninfo(DATABASE),
            "directory": directory,
            "offset": offset,
        }
        hosts_part, _, controllers_part = more.partition("[controllers]\n")
        self.host_config = self._write("hosts.conf", CONFIG.format(**values, more=hosts_part))
        self.config = self._write(
            "controllers.conf",
            CONFIG.format(**values, more=hosts_part + CONTROLLERS.format(**values) + controllers_part),
        )
        self.cables = {number: self._cables(number) for number in wired}
        self.controllers = [self._controller(number) for number in range(controllers)]
        self.hosts: list[Daemon] = []
        self._token: dict[str, str] = {}

    def _write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def _controller(self, number: int) -> Daemon:
        name = f"controller-{number}"
        config = self.config if number not in self.cables else self._wired(number)
        command = [sys.executable, "-m", "kilonova.cli", "controller", "--config-file", str(config)]
        command += ["--state-dir", str(self.directory / name), "--port-offset", str(self.port_offset(number))]
        return Daemon(name, command, self.directory / f"{name}.log")

    def port_offset(self, controller: int) -> int:
        return self.offset + APART * controller

    def _wired(self, number: int) -> Path:
        """The configuration of a controller whose database and bus are at the other end of cables."""
        database, bus = self.cables[number]
        text = self.config.read_text().replace(self.nats.url, f"nats://127.0.0.1:{bus.here}")
        assert isinstance(database.here, Path)
        text = text.replace(f"host={self.postgres.directory}", f"host={database.here.parent}")
        return self._write(f"controller-{number}.conf", text)

    def _cables(self, number: int) -> tuple[Cable, Cable]:
        directory = self.directory / f"cable-{number}"
        directory.mkdir()
        socket = ".s.PGSQL.5432"
        return (
            Cable(directory / socket, self.postgres.directory / socket),
            Cable(free_port(), self.nats.port),
        )

    # ---- its parts ----

    async def up(self, progress: Callable[[str], None] = lambda text: None) -> None:
        """Servers, a database, and all controllers."""
        progress("PostgreSQL")
        await self.postgres.up()
        await self.postgres.make(DATABASE)
        progress("NATS")
        await self.nats.up()
        progress("the database's schema, accounts, flavors, a network")
        first = str(self.directory / "controller-0")
        upgrade = [sys.executable, "-m", "kilonova.cli", "db", "upgrade", "--state-dir", first]
        upgrading = Daemon(
            "db upgrade", [*upgrade, "--config-file", str(self.config)], self.directory / "db.log"
        )
        await upgrading.start(b"clouds.yaml")
        await upgrading.ended()
        for cables in self.cables.values():
            for cable in cables:
                await cable.open()
        for each in self.controllers:
            progress(each.name)
            await each.start(b"ready")

    async def simulate(
        self,
        hosts: int,
        *,
        processes: int = 1,
        first: int = 1,
        name: str = "hosts",
        more: tuple[str, ...] = (),
    ) -> Daemon:
        """That many hosts more, when all of them have reported."""
        command = [sys.executable, "-m", "kilonova.cli", "simulate", "--config-file", str(self.host_config)]
        command += ["--state-dir", str(self.directory / name), "--hosts", str(hosts), "--first", str(first)]
        command += ["--processes", str(processes), *more]
        return await self._joined(Daemon(name, command, self.directory / f"{name}.log"))

    async def agent(self, host: str, *, driver: str = "fake", options: str = "") -> Daemon:
        """One host with an agent's process of its own; ``options`` are more of its configuration."""
        text = self.host_config.read_text().replace("[DEFAULT]", f"[DEFAULT]\nhost = {host}", 1)
        config = self._write(f"{host}.conf", text + options)
        command = [sys.executable, "-m", "kilonova.cli", "agent", "--driver", driver]
        command += ["--config-file", str(config), "--state-dir", str(self.directory / host)]
        return await self._joined(Daemon(host, command, self.directory / f"{host}.log"))

    async def _joined(self, made: Daemon) -> Daemon:
        self.hosts.append(made)  # first of all, so that it is ended in any case
        await made.start(b"ready")
        return made

    async def down(self) -> None:
        """End all of it, whatever state it is in."""
        for each in (*self.hosts, *self.controllers, self.nats):
            if each.process is not None:
                await each.kill()
        for cables in self.cables.values():
            for cable in cables:
                await cable.close()
        if self.postgres.process is not None:
            await self.postgres.stop()

    # ---- what clients see ----

    def clouds_yaml(self) -> Path:
        return self.directory / "controller-0" / "clouds.yaml"

    async def log_in(self, controller: int = 0, cloud: str = "kilonova-admin") -> str:
        """A token; it is good at every controller."""
        auth = json.loads(self.clouds_yaml().read_text())["clouds"][cloud]["auth"]
        domain = {"name": "Default"}
        user = {"name": auth["username"], "password": auth["password"], "domain": domain}
        scope = {"project": {"name": auth["project_name"], "domain": domain}}
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}}
        client = Client("127.0.0.1", PORTS["identity"] + self.port_offset(controller), {})
        try:
            status, answer, headers = await client.request("POST", "/v3/auth/tokens", body)
        finally:
            client.close()
        if status != 201:
            raise RuntimeError(f"log in: {status} {answer!r}")
        return headers["x-subject-token"]

    async def client(
        self,
        controller: int = 0,
        *,
        service: str = "compute",
        cloud: str = "kilonova-admin",
        version: str = "2.96",
    ) -> Client:
        """A connection to one controller."""
        if cloud not in self._token:
            self._token[cloud] = await self.log_in(controller, cloud)
        headers = {"X-Auth-Token": self._token[cloud], "OpenStack-API-Version": f"compute {version}"}
        return Client("127.0.0.1", PORTS[service] + self.port_offset(controller), headers)

    async def call(
        self, method: str, path: str, body: Any = None, *, controller: int = 0, service: str = "compute"
    ) -> Any:
        """The answer's body.  Raises RuntimeError for an error."""
        client = await self.client(controller, service=service)
        try:
            status, answer, _ = await client.request(method, path, body)
        finally:
            client.close()
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {answer!r}")
        return json.loads(answer) if answer else None

    async def image(self, size: int = 1 << 20) -> str:
        """The id of a public image of zeros; made if there is none."""
        found = (await self.call("GET", "/v2/images", service="image"))["images"]
        if found:
            return str(found[0]["id"])
        about = {"name": "zero", "disk_format": "raw", "container_format": "bare", "visibility": "public"}
        made = await self.call("POST", "/v2/images", about, service="image")
        client = await self.client(service="image")
        try:
            status, answer, _ = await client.put(f"/v2/images/{made['id']}/file", bytes(size))
        finally:
            client.close()
        if status != 204:
            raise RuntimeError(f"upload: {status} {answer!r}")
        return str(made["id"])

    async def servers(self, controller: int = 0) -> dict[str, dict[str, Any]]:
        """All servers of all projects by id, in pages."""
        found: dict[str, dict[str, Any]] = {}
        path = "/v2.1/servers/detail?all_tenants=1&limit=1000"
        while path:
            page = await self.call("GET", path, controller=controller)
            found.update((each["id"], each) for each in page["servers"])
            links = {link["rel"]: link["href"] for link in page.get("servers_links", [])}
            path = "/v2.1" + links["next"].split("/v2.1", 1)[1] if "next" in links else ""
        return found
