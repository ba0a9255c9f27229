"""An image service on a real port, with just enough identity beside it for OpenStack's own clients.

Run as a program it serves until it is killed, and says its port on its first line.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kilonova.clock import SystemClock
from kilonova.db.sqlite import SqliteDatabase
from kilonova.errors import Unauthenticated
from kilonova.model.context import RequestContext
from kilonova.services.image.api import app as image_app
from kilonova.services.image.builtin import BuiltinImage
from kilonova.testing.empty_database import have_tables

# user name -> project and roles; the token is the user's name, and so is the password
USERS = {
    "admin": ("admin", ("admin", "member", "reader")),
    "alice": ("alice", ("member", "reader")),
    "bob": ("bob", ("member", "reader")),
    "reader": ("alice", ("reader",)),
}


class Tokens:
    """A TokenValidator that knows USERS."""

    async def validate(self, token: str, request_id: str) -> RequestContext:
        if token not in USERS:
            raise Unauthenticated("The request you have made requires authentication.")
        project, roles = USERS[token]
        return RequestContext(
            request_id=request_id, user_id=token, project_id=project, roles=frozenset(roles)
        )


def identity(root: str) -> ASGIApp:
    """Tokens for USERS and projects by their id: what a client asks before it comes to images."""
    version = {"id": "v3.14", "status": "stable", "links": [{"rel": "self", "href": f"{root}/identity/v3/"}]}
    endpoints = {
        "image": ("glance", root),
        "identity": ("keystone", f"{root}/identity/v3"),
    }

    async def discover(request: Request) -> JSONResponse:
        return JSONResponse({"version": version})

    async def token(request: Request) -> JSONResponse:
        user = (await request.json())["auth"]["identity"]["password"]["user"]["name"]
        project, roles = USERS[user]
        domain = {"id": "default", "name": "Default"}
        catalog = [
            {
                "id": kind,
                "type": kind,
                "name": name,
                "endpoints": [
                    {"id": kind, "interface": "public", "url": url, "region": "R", "region_id": "R"}
                ],
            }
            for kind, (name, url) in endpoints.items()
        ]
        body = {
            "methods": ["password"],
            "issued_at": "2026-01-01T00:00:00.000000Z",
            "expires_at": "2099-01-01T00:00:00.000000Z",
            "user": {"id": user, "name": user, "domain": domain},
            "project": {"id": project, "name": project, "domain": domain},
            "roles": [{"id": each, "name": each} for each in roles],
            "catalog": catalog,
        }
        return JSONResponse({"token": body}, 201, {"X-Subject-Token": user})

    async def project(request: Request) -> JSONResponse:
        name = request.path_params["id"]
        if name not in USERS:
            return JSONResponse({"error": {"code": 404, "message": "no such project"}}, 404)
        return JSONResponse({"project": {"id": name, "name": name, "domain_id": "default", "enabled": True}})

    async def no_projects(request: Request) -> JSONResponse:
        return JSONResponse({"projects": []})

    return Starlette(
        routes=[
            Route("/identity/v3", discover),
            Route("/identity/v3/", discover),
            Route("/identity/v3/auth/tokens", token, methods=["POST"]),
            Route("/identity/v3/projects", no_projects),
            Route("/identity/v3/projects/{id}", project),
        ]
    )


class Cloud:
    """The service in a thread and a loop of its own."""

    def __init__(self, directory: Path, size_limit: int = 1 << 30) -> None:
        self.directory = directory
        self._size_limit = size_limit
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.images: BuiltinImage
        self._server: uvicorn.Server | None = None
        self._ready = threading.Event()
        self.loop: asyncio.AbstractEventLoop

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        await have_tables(self.directory / "kilonova.db")
        db = SqliteDatabase(self.directory / "kilonova.db", SystemClock())
        self.images = BuiltinImage(db, SystemClock(), self.directory / "images", size_limit=self._size_limit)
        await self.images.recover()
        service, keystone = image_app(self.images, Tokens(), self.url), identity(self.url)

        async def both(scope: Scope, receive: Receive, send: Send) -> None:
            await (keystone if scope["path"].startswith("/identity") else service)(scope, receive, send)

        config = uvicorn.Config(
            both, lifespan="off", log_level="warning", loop="none", http="httptools", proxy_headers=False
        )
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._ready.set()
        await self._server._serve([self._socket])
        await self.images.close()
        await db.close()

    @contextmanager
    def serving(self) -> Iterator[Cloud]:
        thread = threading.Thread(target=run, args=(self,))
        thread.start()
        assert self._ready.wait(30)
        try:
            yield self
        finally:
            assert self._server is not None
            self._server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()

    def files(self) -> list[str]:
        return sorted(each.name for each in (self.directory / "images").iterdir() if each.name != ".lock")


def run(cloud: Cloud) -> None:
    """On the loop that ``kilonova up`` runs on."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(cloud.run())


if __name__ == "__main__":
    cloud = Cloud(Path(sys.argv[1]))
    print(cloud.port, flush=True)
    run(cloud)
