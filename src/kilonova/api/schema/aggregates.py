"""Requests about host aggregates."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, UnsetType

from kilonova.api.schema.kinds import MetadataKey, Name, Text, read_name
from kilonova.api.schema.services import HostName
from kilonova.api.shape import Key, Maybe, Reads, Shape


def read_zone(value: str) -> str:
    """A name without colons, which part zone, host and node of a request for a server."""
    if ":" in value:
        raise ValueError("an availability zone has no ':' in its name")
    return read_name(value)


Zone = Annotated[str, Reads(str, read_zone)]


class NewAggregate(Shape):
    name: Name
    availability_zone: Zone | None = None


class CreateAggregate(Shape):
    aggregate: NewAggregate


class ChangedAggregate(Shape):
    name: Maybe[Name] = None
    availability_zone: Zone | UnsetType | None = UNSET


class UpdateAggregate(Shape):
    aggregate: ChangedAggregate


class _Host(Shape):
    host: HostName


class AddHost(Shape):
    chosen: Annotated[_Host, Key("add_host")]


class RemoveHost(Shape):
    chosen: Annotated[_Host, Key("remove_host")]


class _Metadata(Shape):
    metadata: dict[MetadataKey, Text | None]


class SetMetadata(Shape):
    given: Annotated[_Metadata, Key("set_metadata")]
