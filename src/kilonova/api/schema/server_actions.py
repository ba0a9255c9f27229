"""Bodies of the actions on servers, and of what belongs to a server."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from kilonova.api.schema.kinds import FullText, Metadata, MetadataKey, Text, Uuid, read_number
from kilonova.api.schema.servers import Tags
from kilonova.api.shape import Key, Maybe, Reads, Shape, since, until


class Start(Shape):
    value: Annotated[Any, Key("os-start")]


class Stop(Shape):
    value: Annotated[Any, Key("os-stop")]


class ForceDelete(Shape):
    value: Annotated[Any, Key("forceDelete")]


class RebootKind(Shape):
    type: Literal["HARD", "Hard", "hard", "SOFT", "Soft", "soft"]


class Reboot(Shape):
    reboot: RebootKind


class State(Shape):
    state: Literal["active", "error"]


class ResetState(Shape):
    reset: Annotated[State, Key("os-resetState")]


class ConsoleLength(Shape):
    length: Annotated[int, Reads(int | str, read_number(-1))] | None = None


class ConsoleOutput(Shape):
    console: Annotated[ConsoleLength, Key("os-getConsoleOutput")]


class LockReason(Shape):
    locked_reason: Maybe[FullText] = None


class Lock(Shape):
    anything: Annotated[Any, until(72), Key("lock")]
    lock: Annotated[LockReason | None, since(73)]


class Unlock(Shape):
    anything: Annotated[Any, until(72), Key("unlock")]
    unlock: Annotated[None, since(73)]


class AllMetadata(Shape):
    metadata: Metadata


class OneMetadata(Shape):
    meta: Annotated[dict[MetadataKey, Text], Meta(min_length=1, max_length=1)]


class AllTags(Shape):
    tags: Tags


class Event(Shape):
    name: Literal[
        "network-changed",
        "network-vif-plugged",
        "network-vif-unplugged",
        "network-vif-deleted",
        "volume-extended",
        "power-update",
        "accelerator-request-bound",
        "volume-reimaged",
    ]
    server_uuid: Uuid
    status: Maybe[Literal["failed", "completed", "in-progress"]] = None
    tag: Maybe[Text] = None


class Events(Shape):
    events: Annotated[list[Event], Meta(min_length=1)]
