"""Bodies of requests on a server's volumes."""

from __future__ import annotations

from typing import Annotated

from kilonova.api.query import Keys
from kilonova.api.schema.kinds import Flag, Uuid
from kilonova.api.schema.servers import Tag
from kilonova.api.shape import Key, Maybe, Reads, Shape, Span, since
from kilonova.errors import Invalid
from kilonova.operations.device_names import letter_of


def read_device(value: str) -> str:
    """``/dev/vdb``; the words are those that shapes know."""
    try:
        letter_of(value)
    except Invalid as error:
        raise ValueError(str(error)) from None
    return value


Device = Annotated[str, Reads(str, read_device)]


class Wanted(Shape):
    volume_id: Annotated[Uuid, Key("volumeId")]
    device: Device | None = None
    tag: Annotated[Maybe[Tag], since(49)] = None
    delete_on_termination: Annotated[Maybe[Flag], since(79)] = None


class Attach(Shape):
    wanted: Annotated[Wanted, Key("volumeAttachment")]


class Changed(Shape):
    """From 2.85 on what is not to change may be there, as it is shown."""

    volume_id: Annotated[Uuid, Key("volumeId")]
    device: Annotated[Device | None, since(85)] = None
    tag: Annotated[Maybe[Tag], since(85)] = None
    delete_on_termination: Annotated[Maybe[Flag], since(85)] = None
    server_id: Annotated[Maybe[Uuid], Key("serverId"), since(85)] = None
    id: Annotated[Maybe[Uuid], since(85)] = None


class Change(Shape):
    changed: Annotated[Changed, Key("volumeAttachment")]


LIST = Keys({"limit": Span(), "offset": Span()}, strict_since=75)
