"""Requests about quota class sets."""

from __future__ import annotations

from typing import Annotated

from kilonova.api.schema.quotas import FILES_UNTIL, Limit
from kilonova.api.shape import Maybe, Shape, until

NETWORK_UNTIL = 49


class QuotaClassSet(Shape):
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


class UpdateQuotaClassSet(Shape):
    quota_class_set: QuotaClassSet
