"""Requests about services."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from kilonova.api.query import Keys
from kilonova.api.schema.kinds import Flag, FullText
from kilonova.api.shape import Maybe, Shape, Span, since

HostName = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9\-._]*$")]


class VerbOnService(Shape):
    """Up to 2.52: the verb is in the address, and the service in the body."""

    host: HostName
    binary: FullText
    disabled_reason: Maybe[FullText] = None
    forced_down: Annotated[Maybe[Flag], since(11)] = None


class UpdateService(Shape):
    """From 2.53 on: the service is in the address."""

    status: Maybe[Literal["enabled", "disabled"]] = None
    disabled_reason: Maybe[FullText] = None
    forced_down: Maybe[Flag] = None


LIST = Keys({"host": Span(), "binary": Span()}, strict_since=75)
