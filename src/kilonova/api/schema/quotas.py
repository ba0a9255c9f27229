"""Requests about quota sets."""

from __future__ import annotations

from typing import Annotated

from kilonova.api.query import Keys
from kilonova.api.schema.kinds import Flag, read_number
from kilonova.api.shape import Maybe, Reads, Shape, Span, fields, until

Limit = Annotated[int, Reads(int | str, read_number(-1))]

NETWORK_UNTIL = 35
FILES_UNTIL = 56


class QuotaSet(Shape):
    instances: Maybe[Limit] = None
    cores: Maybe[Limit] = None
    ram: Maybe[Limit] = None
    metadata_items: Maybe[Limit] = None
    key_pairs: Maybe[Limit] = None
    server_groups: Maybe[Limit] = None
    server_group_members: Maybe[Limit] = None
    injected_files: Annotated[Maybe[Limit], until(FILES_UNTIL)] = None
    injected_file_content_bytes: Annotated[Maybe[Limit], until(FILES_UNTIL)] = None
    injected_file_path_bytes: Annotated[Maybe[Limit], until(FILES_UNTIL)] = None
    fixed_ips: Annotated[Maybe[Limit], until(NETWORK_UNTIL)] = None
    floating_ips: Annotated[Maybe[Limit], until(NETWORK_UNTIL)] = None
    security_groups: Annotated[Maybe[Limit], until(NETWORK_UNTIL)] = None
    security_group_rules: Annotated[Maybe[Limit], until(NETWORK_UNTIL)] = None
    force: Flag = False


class UpdateQuotaSet(Shape):
    quota_set: QuotaSet


def limits_given(given: Shape) -> dict[str, int]:
    """The limits that a request names, by resource."""
    named = {field.name: getattr(given, field.name) for field in fields(QuotaSet) if field.name != "force"}
    return {name: limit for name, limit in named.items() if limit is not None}


KEYS = Keys({"user_id": Span()}, strict_since=75)
