"""``createImage``: the id of the image is in the header Location, from 2.45 on in the body."""

from __future__ import annotations

from kilonova.api.call import Answer, Call
from kilonova.api.routes import Route
from kilonova.api.schema.server_create_image import CreateImage
from kilonova.api.server_found import server_of
from kilonova.operations import create_image as operation

UNCOUNTED = 39
IN_BODY = 45


async def create_image(call: Call) -> Answer:
    body: CreateImage = call.body
    asked = body.create_image
    instance = await server_of(call)
    metadata = asked.metadata or {}
    if call.version < UNCOUNTED:
        operation.check_metadata(call.cloud, metadata)
    image_id = await operation.submit(call.cloud, call.context, instance.uuid, asked.name, metadata)
    if call.version >= IN_BODY:
        return Answer({"image_id": image_id})
    where = f"{call.cloud.settings.url('image')}/images/{image_id}"
    return Answer(headers=[(b"location", where.encode())])


ROUTES = (
    Route(
        "POST",
        "/servers/{server_id}/action",
        create_image,
        "os_compute_api:servers:create_image",
        action="createImage",
        body=CreateImage,
        success=202,
        late=True,
    ),
)
