"""The arithmetic of quotas: what may still be had, and the words for when it may not.

-1 is no limit.
"""

from __future__ import annotations

from collections.abc import Mapping

from kilonova.db.quotas import COUNTED, UNLIMITED, exceeded, over_quota
from kilonova.errors import Invalid
from kilonova.settings import Settings

LARGEST = 2**31 - 1  # what Nova's columns hold

RESOURCES = (
    *COUNTED,
    "metadata_items",
    "injected_files",
    "injected_file_content_bytes",
    "injected_file_path_bytes",
    "key_pairs",
    "server_groups",
    "server_group_members",
)
"""Nova's names, as they stand in quota sets."""

OPTIONS = {name: name for name in RESOURCES} | {"injected_file_path_bytes": "injected_file_path_length"}
"""Resource -> the option of [quota] that has its default."""

GONE = {
    "fixed_ips": UNLIMITED,
    "floating_ips": UNLIMITED,
    "security_groups": UNLIMITED,
    "security_group_rules": UNLIMITED,
}
"""Resources that the network service counts by now: old microversions show them as unlimited."""


def defaults(settings: Settings) -> dict[str, int]:
    """Resource -> the limit that [quota] gives to whom no other is set."""
    return {**GONE, **{name: settings.number(option, "quota") for name, option in OPTIONS.items()}}


def fitting(
    limits: Mapping[str, int], used: Mapping[str, int], one: Mapping[str, int], least: int, most: int
) -> int:
    """How many servers, from ``least`` to ``most``, may be made, if one uses ``one`` of each resource.

    Raises OverQuota when not even ``least`` fit; it says what was asked for at most, as Nova does.
    """
    count = most
    for name, amount in one.items():
        limit = limits.get(name, UNLIMITED)
        if limit >= 0 and amount > 0:
            count = min(count, (limit - used.get(name, 0)) // amount)
    if count < least:
        wanted = {name: amount * most for name, amount in one.items()}
        names = exceeded(limits, used, wanted)
        words: dict[str, int | str] = {**wanted}
        if least != most:
            words["instances"] = f"{least}-{most}"
        raise over_quota(names, limits, used, words)
    return count


def check_limit(name: str, limit: int, *, minimum: int, maximum: int = UNLIMITED) -> None:
    """Whether a limit may be set: not below what is used, not above what is allowed.  Raises Invalid."""
    if limit < UNLIMITED:
        raise Invalid(f"Quota limit {limit} for {name} must be -1 or greater.")
    if limit != UNLIMITED and (minimum == UNLIMITED or limit < minimum):
        raise Invalid(
            f"Quota limit {limit} for {name} must be greater than or equal to already used and reserved "
            f"{minimum}."
        )
    if maximum != UNLIMITED and (limit == UNLIMITED or limit > maximum):
        raise Invalid(f"Quota limit {limit} for {name} must be less than or equal to {maximum}.")
