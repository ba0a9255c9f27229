"""What the contract suites of the services run against.

A rig is a service behind its Protocol, and that service's own REST API, by which a test arranges what is
there: so an adapter for the real service needs no more than another function in ``RIGS`` that knows how to
send a request to it.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from starlette.types import ASGIApp

from kilonova.clock import SystemClock
from kilonova.errors import Unauthenticated
from kilonova.model.context import RequestContext
from kilonova.services.identity import api as identity_api
from kilonova.services.identity.bootstrap import bootstrap
from kilonova.services.identity.builtin import BuiltinIdentity
from kilonova.services.identity.passwords import Cost, Passwords
from kilonova.services.identity.port import Identity
from kilonova.services.image import api as image_api
from kilonova.services.image.builtin import BuiltinImage
from kilonova.services.image.port import ImageService
from kilonova.services.network import api as network_api
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.port import NetworkService
from kilonova.services.placement import api as placement_api
from kilonova.services.placement.builtin import BuiltinPlacement
from kilonova.services.placement.port import Placement
from kilonova.services.volume import api as volume_api
from kilonova.services.volume.builtin import BuiltinVolumes
from kilonova.services.volume.port import VolumeService
from kilonova.testing.clock import VirtualClock
from tests.api.direct import Reply, send
from tests.conftest import opened
from tests.unit.volume.conftest import virtual_size

ROOT = "http://cloud.example"


class Rest(Protocol):
    """A request to a service's own API as one of ``CALLERS``, or with a token that the test has."""

    async def __call__(
        self, method: str, path: str, body: Any = None, who: str = "admin", **headers: str
    ) -> Reply: ...


@dataclass
class Rig:
    """``pass_seconds`` moves the time that tokens live by."""

    rest: Rest
    identity: Identity | None = None
    image: ImageService | None = None
    network: NetworkService | None = None
    placement: Placement | None = None
    volume: VolumeService | None = None
    pass_seconds: Callable[[float], None] = lambda seconds: None


CALLERS = {
    "admin": ("admins", ("admin", "manager", "member", "reader")),
    "alice": ("alpha", ("member", "reader")),
    "reader": ("alpha", ("reader",)),
    "bob": ("beta", ("member", "reader")),
}


def caller(who: str) -> RequestContext:
    project, roles = CALLERS[who]
    return RequestContext(request_id="req-1", user_id=who, project_id=project, roles=frozenset(roles))


def new() -> str:
    return str(uuid.uuid4())


class _Names:
    """A TokenValidator whose tokens are the names of CALLERS."""

    async def validate(self, token: str, request_id: str) -> RequestContext:
        if token not in CALLERS:
            raise Unauthenticated("no such caller")
        return caller(token)


def _rest(app: ASGIApp, login: Callable[[], Awaitable[str]] | None = None) -> Rest:
    async def rest(method: str, path: str, body: Any = None, who: str = "admin", **headers: str) -> Reply:
        token = await login() if login is not None and who == "admin" else who
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await send(app, method, path, body, {"x-auth-token": token, **given})

    return rest


def builtin(kind: str) -> Callable[..., Any]:
    """All five services of our own on a database of this kind."""

    @contextlib.asynccontextmanager
    async def made(request: pytest.FixtureRequest, directory: Path, service: str) -> AsyncIterator[Rig]:
        clock = VirtualClock()
        async with opened(request, kind, directory, clock) as db:
            if service == "placement":
                placement = BuiltinPlacement(db, clock)
                yield Rig(_rest(placement_api.app(placement, _Names())), placement=placement)
            elif service == "identity":
                passwords = Passwords(clock, Cost(log_n=1, r=8, p=1))
                identity = BuiltinIdentity(db, clock, directory / "keys", passwords=passwords)
                day = await bootstrap(db, clock, "admin", "demo", passwords=passwords)
                app = identity_api.app(identity, {"identity": ROOT}, ROOT)
                yield Rig(
                    _rest(app, _administrator(app, day.projects["admin"])),
                    identity=identity,
                    pass_seconds=clock.advance,
                )
                identity.close()
            elif service == "image":
                image = BuiltinImage(db, SystemClock(), directory / "images", size_limit=64 << 20)
                await image.recover()
                yield Rig(_rest(image_api.app(image, _Names(), ROOT)), image=image)
                await image.close()
            elif service == "volume":
                image = BuiltinImage(db, SystemClock(), directory / "images")
                volume = BuiltinVolumes(db, SystemClock(), new, directory / "volumes", image, virtual_size)
                await volume.recover()
                yield Rig(_rest(volume_api.app(volume, _Names(), ROOT)), volume=volume)
                await volume.close()
                await image.close()
            else:
                network = BuiltinNetwork(db, SystemClock(), new)
                yield Rig(_rest(network_api.app(network, _Names(), ROOT)), network=network)
                await network.close()

    return made


def _administrator(app: ASGIApp, project: str) -> Callable[[], Awaitable[str]]:
    user = {"name": "admin", "password": "admin", "domain": {"id": "default"}}
    methods = {"methods": ["password"], "password": {"user": user}}
    body = {"auth": {"identity": methods, "scope": {"project": {"id": project}}}}

    async def login() -> str:
        return (await send(app, "POST", "/v3/auth/tokens", body)).expect(201).headers["x-subject-token"]

    return login


RIGS = {"builtin-sqlite": builtin("sqlite"), "builtin-postgresql": builtin("postgresql")}
PARAMS = [
    pytest.param(name, marks=pytest.mark.postgresql) if name.endswith("postgresql") else name for name in RIGS
]
