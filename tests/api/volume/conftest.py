"""The volume API in the same process, and who calls it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.clock import SystemClock
from kilonova.db.engine import Database
from kilonova.errors import Unauthenticated
from kilonova.model.context import RequestContext
from kilonova.services.volume import api
from kilonova.services.volume.builtin import BuiltinVolumes
from kilonova.services.volume.records import Options
from tests.api.direct import Reply, send
from tests.unit.volume.conftest import Images, new_uuid, virtual_size

ROOT = "http://cloud.example:8776"

# name -> project and roles
CALLERS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "admin": ("admins", ("admin", "manager", "member", "reader")),
    "alice": ("alpha", ("member", "reader")),
    "reader": ("alpha", ("reader",)),
    "nobody": ("alpha", ("auditor",)),
    "bob": ("beta", ("member", "reader")),
    "nova": ("services", ("service",)),
    "unscoped": (None, ("member",)),
}


class Names:
    """A TokenValidator whose tokens are the names of CALLERS."""

    async def validate(self, token: str, request_id: str) -> RequestContext:
        if token not in CALLERS:
            raise Unauthenticated("The request you have made requires authentication.")
        project, roles = CALLERS[token]
        return RequestContext(
            request_id=request_id, user_id=token, project_id=project, roles=frozenset(roles)
        )


class Face:
    """Requests to the API; ``version`` is the minor number of a microversion."""

    def __init__(self, db: Database, directory: Path) -> None:
        self.images = Images()
        self.quotas = {**Options().quotas}
        self.service = BuiltinVolumes(
            db,
            SystemClock(),
            new_uuid,
            directory,
            self.images,
            virtual_size,
            options=Options(quotas=self.quotas),
        )
        self.app = api.app(self.service, Names(), ROOT)

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        who: str = "alice",
        version: int | str | None = None,
        **headers: str,
    ) -> Reply:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if who:
            given["x-auth-token"] = who
        if version is not None:
            given["openstack-api-version"] = f"volume 3.{version}" if isinstance(version, int) else version
        return await send(self.app, method, path, body, given)

    async def made(self, who: str = "alice", **values: Any) -> dict[str, Any]:
        """A volume that is there."""
        reply = await self("POST", "/v3/volumes", {"volume": {"size": 1, **values}}, who)
        made = reply.expect(202).json["volume"]
        await self.service.idle()
        return await self.shown(made["id"], who)

    async def shown(self, volume_id: str, who: str = "alice", version: int = 70) -> dict[str, Any]:
        found = (await self("GET", f"/v3/volumes/{volume_id}", who=who, version=version)).expect(200)
        return dict(found.json["volume"])

    async def act(
        self, volume_id: str, action: str, given: Any = None, who: str = "alice", **headers: str
    ) -> Reply:
        return await self("POST", f"/v3/volumes/{volume_id}/action", {action: given}, who, **headers)

    async def attached(self, volume_id: str, who: str = "alice") -> str:
        """The id of an attachment by which a server has the volume."""
        attachment_id = str(uuid.uuid4())
        owner = RequestContext(request_id="r", user_id=who, project_id=CALLERS[who][0])
        await self.service.reserve(owner, volume_id, str(uuid.uuid4()), attachment_id)
        await self.service.connect(attachment_id, "compute1", "/dev/vdb")
        await self.service.complete(attachment_id)
        return attachment_id


@pytest.fixture
async def face(db: Database, tmp_path: Path) -> AsyncIterator[Face]:
    made = Face(db, tmp_path / "volumes")
    await made.service.recover()
    yield made
    await made.service.close()
