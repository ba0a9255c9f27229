"""Bodies of shelving and unshelving."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, UnsetType

from kilonova.api.schema.kinds import Name
from kilonova.api.schema.servers import HostName
from kilonova.api.shape import Key, Maybe, Shape, between, since, until


class Shelve(Shape):
    shelve: Any


class ShelveOffload(Shape):
    value: Annotated[Any, Key("shelveOffload")]


class Unshelving(Shape):
    """A zone of null is "in any zone", from 2.91 on."""

    first_zone: Annotated[Name, between(77, 90), Key("availability_zone")]
    zone: Annotated[Name | UnsetType | None, since(91), Key("availability_zone")] = UNSET
    host: Annotated[Maybe[HostName], since(91)] = None


class Unshelve(Shape):
    anything: Annotated[dict[str, Any] | None, until(76), Key("unshelve")]
    unshelve: Annotated[Unshelving | None, since(77)]
