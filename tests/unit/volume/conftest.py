"""A volume service on each kind of database, and those who use it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from kilonova.db.engine import Database
from kilonova.db.volumes import StoredVolume
from kilonova.errors import NotFound
from kilonova.model.context import RequestContext
from kilonova.model.image import Image
from kilonova.services.image.inspect import inspect
from kilonova.services.volume.builtin import BuiltinVolumes
from kilonova.services.volume.records import NewVolume, Options
from kilonova.testing.clock import VirtualClock


def caller(project: str | None, *roles: str) -> RequestContext:
    return RequestContext(
        request_id="req-1", user_id="u", project_id=project, roles=frozenset(roles or ("member", "reader"))
    )


ADMIN = caller("admin", "admin", "member")
ALICE = caller("alice")
BOB = caller("bob")


class Images:
    """An image service with a few images in memory."""

    def __init__(self) -> None:
        self.images: dict[str, Image] = {}
        self.data: dict[str, list[bytes]] = {}
        self.before_piece: Any = None  # awaited before each piece is given

    async def show(self, context: RequestContext, image_id: str) -> Image:
        if image_id not in self.images:
            raise NotFound(f"No image found with ID {image_id}.")
        return self.images[image_id]

    async def read(self, image_id: str) -> AsyncIterator[bytes]:
        for piece in self.data[image_id]:
            if self.before_piece is not None:
                await self.before_piece()
            yield piece


def virtual_size(file: BinaryIO, disk_format: str) -> int:
    return inspect(file, disk_format).virtual_size


def new_uuid() -> str:
    return str(uuid.uuid4())


class House:
    """The service on a directory, killed and started again at will."""

    def __init__(self, db: Database, directory: Path) -> None:
        self.db = db
        self.directory = directory
        self.clock = VirtualClock()
        self.images = Images()
        self.quotas = {**Options().quotas}
        self.open: list[BuiltinVolumes] = []
        self.service = self.another()

    def another(self, *, shared: bool = False) -> BuiltinVolumes:
        """The service of a process."""
        options = Options(quotas=self.quotas)
        made = BuiltinVolumes(
            self.db,
            self.clock,
            new_uuid,
            self.directory,
            self.images,
            virtual_size,
            options=options,
            shared=shared,
        )
        self.open.append(made)
        return made

    async def killed(self, service: BuiltinVolumes | None = None) -> None:
        """What is under way stops where it is."""
        service = service or self.service
        self.open.remove(service)
        await service.close()

    async def again(self) -> BuiltinVolumes:
        """Kill it, start it again, and let it do what was left."""
        await self.killed()
        self.service = self.another()
        await self.service.recover()
        await self.service.idle()
        return self.service

    async def made(self, context: RequestContext = ALICE, size_gb: int = 1, **values: Any) -> StoredVolume:
        """A volume that is there."""
        volume = await self.service.create(context, NewVolume(size_gb=size_gb, **values))
        await self.service.idle()
        return volume

    def files(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.name != ".lock")


@pytest.fixture
async def house(db: Database, tmp_path: Path) -> AsyncIterator[House]:
    made = House(db, tmp_path / "volumes")
    await made.service.recover()
    yield made
    for each in made.open:
        await each.close()
