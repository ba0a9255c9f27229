"""Absolute limits as they are shown: what may be had, and what is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from kilonova.api.view import Item, View


class Account(msgspec.Struct, frozen=True):
    """A project's limits and use, by resource."""

    limits: dict[str, int]
    used: dict[str, int]


def _limit(resource: str) -> Callable[[Account], Any]:
    return lambda account: account.limits[resource]


def _used(resource: str) -> Callable[[Account], Any]:
    return lambda account: account.used.get(resource, 0)


ABSOLUTE = View(
    Item("maxServerMeta", _limit("metadata_items")),
    Item("maxImageMeta", _limit("metadata_items"), until=38),
    Item("maxPersonality", _limit("injected_files"), until=56),
    Item("maxPersonalitySize", _limit("injected_file_content_bytes"), until=56),
    Item("maxTotalInstances", _limit("instances")),
    Item("maxTotalCores", _limit("cores")),
    Item("maxTotalRAMSize", _limit("ram")),
    Item("maxTotalKeypairs", _limit("key_pairs")),
    Item("maxServerGroups", _limit("server_groups")),
    Item("maxServerGroupMembers", _limit("server_group_members")),
    Item("maxTotalFloatingIps", _limit("floating_ips"), until=35),
    Item("maxSecurityGroups", _limit("security_groups"), until=35),
    Item("maxSecurityGroupRules", _limit("security_group_rules"), until=35),
    Item("totalInstancesUsed", _used("instances")),
    Item("totalCoresUsed", _used("cores")),
    Item("totalRAMUsed", _used("ram")),
    Item("totalFloatingIpsUsed", _used("floating_ips"), until=35),
    Item("totalSecurityGroupsUsed", _used("security_groups"), until=35),
    Item("totalServerGroupsUsed", _used("server_groups")),
)
