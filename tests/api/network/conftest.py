"""The network API on a real server, with a validator that knows five tokens."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest
import requests

from kilonova.clock import SystemClock
from kilonova.db.engine import Database
from kilonova.errors import Unauthenticated
from kilonova.model.context import RequestContext
from kilonova.model.port import RequestedNetwork, Vif
from kilonova.services.network.api import app
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.first_start import first_start
from kilonova.services.network.port import PortRequest
from kilonova.web.server import HttpServer

T = TypeVar("T")

_WHO = {
    "admin": ("admins", {"admin", "member"}),
    "alice": ("alpha", {"member"}),
    "bob": ("beta", {"member"}),
    "nova": ("services", {"service"}),
    "lost": (None, {"member"}),
}


class Tokens:
    """A token is the name of its bearer."""

    async def validate(self, token: str, request_id: str) -> RequestContext:
        if token not in _WHO:
            raise Unauthenticated("The token is not valid.")
        project, roles = _WHO[token]
        return RequestContext(
            request_id=request_id, user_id=token, project_id=project, roles=frozenset(roles)
        )


class Answer:
    def __init__(self, response: requests.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.text = response.text
        self.body: Any = response.json() if response.text else None

    @property
    def fault(self) -> tuple[int, str]:
        """(HTTP status, Neutron's type) of an error answer, whose shape is checked."""
        error = self.body["NeutronError"]
        assert set(error) == {"type", "message", "detail"} and error["message"], self.text
        return self.status, error["type"]


class Face:
    """The served API and the ways to call it."""

    def __init__(self, url: str, service: BuiltinNetwork) -> None:
        self.url = url
        self.service = service
        self.events: list[tuple[str, str, str, str]] = []

    async def call(
        self, method: str, path: str, body: Any = None, who: str | None = "alice", data: bytes | None = None
    ) -> Answer:
        headers = {"X-Auth-Token": who} if who else {}
        url = self.url + (path if path.startswith("/v2.0") or path == "/" else "/v2.0" + path)

        def send() -> Answer:
            with requests.Session() as session:
                return Answer(session.request(method, url, json=body, data=data, headers=headers, timeout=60))

        return await asyncio.to_thread(send)

    async def get(self, path: str, who: str | None = "alice") -> Any:
        answer = await self.call("GET", path, who=who)
        assert answer.status == 200, answer.text
        return answer.body

    async def make(self, kind: str, who: str = "alice", **values: Any) -> dict[str, Any]:
        answer = await self.call("POST", f"/{kind.replace('_', '-')}s", {kind: values}, who)
        assert answer.status == 201, answer.text
        made: dict[str, Any] = answer.body[kind]
        return made

    async def boot(self, instance: str, network_id: str, project: str = "alpha") -> Vif:
        request = PortRequest(
            instance_uuid=instance,
            project_id=project,
            hostname=instance,
            networks=(RequestedNetwork(network_id=network_id),),
        )
        return (await self.service.allocate(request, "one", {}))[0]

    async def sdk(self, use: Callable[[Any], T], who: str = "alice") -> T:
        """Call openstacksdk's network proxy in a thread."""

        def run() -> T:
            import openstack

            connection = openstack.connect(
                auth_type="admin_token",
                auth={"endpoint": self.url, "token": who},
                load_yaml_config=False,
                load_envvars=False,
            )
            try:
                return use(connection.network)
            finally:
                connection.close()

        return await asyncio.to_thread(run)

    async def cli(self, *commands: str, who: str = "alice") -> list[tuple[int, Any]]:
        """Run ``openstack`` commands, in a process of their own; (exit code, decoded output or error)."""
        login = ["--os-auth-type", "admin_token", "--os-endpoint", self.url, "--os-token", who]
        given = json.dumps([[*login, *command.split()] for command in commands])
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-W",
            "ignore",
            "-c",
            _SHELL,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(given.encode())
        assert process.returncode == 0, err.decode()
        return [
            (code, json.loads(text) if text[:1] in "{[" and text else text) for code, text in json.loads(out)
        ]


_SHELL = """
import contextlib, io, json, sys
from openstackclient.shell import OpenStackShell
results = []
for argv in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = OpenStackShell().run(argv)
        except SystemExit as exit:
            code = exit.code
    results.append([code, (out.getvalue() or err.getvalue()).strip()])
sys.__stdout__.write(json.dumps(results))
"""


@pytest.fixture
async def face(db: Database) -> AsyncIterator[Face]:
    service = BuiltinNetwork(db, SystemClock(), lambda: str(uuid.uuid4()))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        made = Face(url, service)

        async def heard(*event: str) -> None:
            made.events.append(event)  # type: ignore[arg-type]

        service.on_event = heard
        await first_start(service, "admins")
        server = HttpServer(app(service, Tokens(), url), [listening])
        await server.start()
        yield made
        await server.stop()
    await service.close()
