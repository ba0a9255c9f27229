"""Shelved servers for tests: on their way there, there, and back."""

from __future__ import annotations

from typing import Any

from kilonova.errors import NotFound
from kilonova.model.image import Image
from kilonova.model.instance import Instance
from kilonova.operations import shelve, unshelve
from kilonova.operations.create import submit as create
from kilonova.operations.requests import CreateServer
from kilonova.testing.embedded import member, server, settled
from tests.operations.conftest import Three

CONTENT = b"what the guest has written " * 70_000  # some pieces, the last one not whole


async def boot(three: Three, **more: Any) -> Instance:
    """A server that runs and has written something on its disk."""
    cloud = three.cloud
    values = {"name": "s", "flavor_id": "42", "image_id": cloud.example_image, **more}
    (made,) = await create(cloud.cloud, member(cloud), CreateServer(**values))
    found = await settled(cloud, made.uuid, 60)
    three.host(str(found.host)).driver.disks.write(found.uuid, CONTENT)
    return found


async def put_away(three: Three, uuid: str) -> Instance:
    await shelve.submit(three.cloud.cloud, member(three.cloud), uuid)
    return await settled(three.cloud, uuid, 60)


async def back(three: Three, uuid: str, **more: Any) -> Instance:
    await unshelve.submit(three.cloud.cloud, member(three.cloud), uuid, **more)
    return await settled(three.cloud, uuid, 60)


async def image_of(three: Three, uuid: str) -> Image:
    """What a server is shelved into, as its owner sees it."""
    found = await server(three.cloud, uuid)
    return await three.cloud.image.show(member(three.cloud), found.system_metadata["shelved_image_id"])


async def is_there(three: Three, image_id: str) -> bool:
    try:
        await three.cloud.image.show(member(three.cloud), image_id)
    except NotFound:
        return False
    return True


async def images(three: Three) -> list[str]:
    """The names of all images and files of images but for the example's."""
    from sqlalchemy import select

    from kilonova.db.tables.image import images as table

    rows = await three.cloud.db.read(lambda tx: tx.all(select(table.c.name, table.c.id)))
    files = [path.name for path in three.cloud.places.images.iterdir() if path.name[:1] != "."]
    example = three.cloud.example_image
    return sorted([name for name, id in rows if id != example] + [name for name in files if name != example])


def snapshots(three: Three) -> list[tuple[str, str]]:
    """What hosts have kept."""
    return [each for host in three.hosts for each in host.driver.disks.snapshots()]
