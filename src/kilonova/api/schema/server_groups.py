"""Requests about server groups."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from kilonova.api.query import Keys
from kilonova.api.schema.kinds import Name, read_number
from kilonova.api.shape import Key, Maybe, Reads, Shape, Span, between, since, until

SOFT = 15  # from here on there are soft policies
ONE_POLICY = 64  # from here on a group has one policy, and rules for it

Hard = Literal["anti-affinity", "affinity"]
Policy = Literal["anti-affinity", "affinity", "soft-anti-affinity", "soft-affinity"]


class Rules(Shape):
    max_server_per_host: Maybe[Annotated[int, Reads(int | str, read_number(1))]] = None


class NewServerGroup(Shape):
    name: Name
    hard: Annotated[Annotated[list[Hard], Meta(min_length=1, max_length=1)], until(SOFT - 1), Key("policies")]
    policies: Annotated[
        Annotated[list[Policy], Meta(min_length=1, max_length=1)], between(SOFT, ONE_POLICY - 1)
    ]
    policy: Annotated[Policy, since(ONE_POLICY)]
    rules: Annotated[Maybe[Rules], since(ONE_POLICY)] = None


class CreateServerGroup(Shape):
    server_group: NewServerGroup


LIST = Keys({"all_projects": Span(), "limit": Span(), "offset": Span()}, strict_since=75)
