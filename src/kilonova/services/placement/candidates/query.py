"""The query of ``GET /allocation_candidates`` of each microversion."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kilonova.services.placement import queries
from kilonova.services.placement.call import BadQuery, Call, Duplicated, MissingValue
from kilonova.services.placement.candidates.render import MAPPINGS, NESTED
from kilonova.services.placement.candidates.wanted import Group, Wanted

GRANULAR, TEXT_SUFFIXES, SAME_SUBTREE = 25, 33, 36

_SINCE = {
    "resources": 10,
    "limit": 16,
    "required": 17,
    "member_of": 21,
    "group_policy": 25,
    "in_tree": 31,
    "root_required": 35,
    "same_subtree": 36,
}
_OF_GROUPS = re.compile(r"(resources|required|member_of|in_tree)([a-zA-Z0-9_-]{1,64})\Z")
_NUMBER = re.compile(r"[1-9][0-9]*\Z")
_LIMIT = re.compile(r"[1-9][0-9]{0,17}\Z")
_ONCE = ("limit", "root_required", "in_tree")

Values = dict[str, list[str]]


def read(call: Call) -> Wanted:
    """Raises Invalid for what is not known at this microversion, makes no sense, or is missing."""
    whole, groups = _sorted_out(call)
    known = [_group(suffix, groups[suffix], call.version) for suffix in groups]
    same_subtree = _same_subtree(whole.get("same_subtree", []), groups)
    _check_resources(known, same_subtree, call.version)
    policy = whole.get("group_policy", [None])[0]
    if policy not in (None, "none", "isolate"):
        raise BadQuery(f"Invalid query string parameters: '{policy}' is not one of ['none', 'isolate'].")
    if policy is None and sum(bool(group.suffix) for group in known) > 1:
        raise BadQuery(
            'The "group_policy" parameter is required when specifying more than one "resources{N}" parameter.'
        )
    limit = whole.get("limit", [None])[0]
    if limit is not None and not _LIMIT.match(limit):
        raise BadQuery(f"Invalid query string parameters: 'limit' must be a positive number, got: {limit}.")
    root = queries.traits("root_required", whole.get("root_required", []), call.version)
    return Wanted(
        groups=tuple(known),
        isolate=policy == "isolate",
        same_subtree=same_subtree,
        root_required=root.required,
        root_forbidden=root.forbidden,
        limit=None if limit is None else int(limit),
        nested=call.version >= NESTED,
        mapped=call.version >= MAPPINGS,
    )


def _sorted_out(call: Call) -> tuple[Values, dict[str, Values]]:
    """The parameters of the whole request, and those of each group by its suffix."""
    whole: Values = {}
    groups: dict[str, Values] = {}
    for key, values in call.all_queries().items():
        name, suffix = _name(key, call.version)
        if len(values) > 1 and (name in _ONCE or name == "resources"):
            raise Duplicated(f"Query parameter '{key}' may be specified only once.")
        if name in ("resources", "required", "member_of", "in_tree"):
            groups.setdefault(suffix, {})[name] = values
        else:
            whole[name] = values
    return whole, groups


def _name(key: str, version: int) -> tuple[str, str]:
    """The parameter, and the suffix of its group.  Raises BadQuery for what this version does not know."""
    matched = _OF_GROUPS.match(key)
    name, suffix = matched.groups() if matched and key not in _SINCE else (key, "")
    allowed = version >= _SINCE.get(name, 1000)
    if suffix:
        numbered = _NUMBER.match(suffix) is not None
        allowed = allowed and version >= (GRANULAR if numbered else TEXT_SUFFIXES)
    if not allowed:
        raise BadQuery(f"Invalid query string parameters: '{key}' was unexpected at 1.{version}.")
    return name, suffix


def _group(suffix: str, values: Values, version: int) -> Group:
    required = values.get("required", [])
    if version < queries.ANY_TRAITS:
        required = required[-1:]  # as Placement, which took the last of several
    traits = queries.traits("required" + suffix, required, version)
    member_of, not_member_of = queries.member_of("member_of" + suffix, values.get("member_of", []), version)
    in_tree = values.get("in_tree")
    return Group(
        suffix=suffix,
        resources=queries.resources(values["resources"][0]) if "resources" in values else (),
        required=traits.required,
        forbidden=traits.forbidden,
        any_of=traits.any_of,
        member_of=member_of,
        not_member_of=not_member_of,
        in_tree=None if in_tree is None else queries.one_uuid("in_tree" + suffix, in_tree[0]),
    )


def _same_subtree(values: Sequence[str], groups: dict[str, Values]) -> tuple[frozenset[str], ...]:
    several = tuple(frozenset(value.split(",")) for value in values)
    for suffix in sorted(frozenset().union(*several)):
        if not suffix:
            raise BadQuery("Empty string (unsuffixed group) can not be specified in `same_subtree`.")
        if suffix not in groups:
            raise BadQuery(f"Real suffixes should be specified in `same_subtree`: there is no '{suffix}'.")
    return several


def _check_resources(groups: Sequence[Group], same_subtree: Sequence[frozenset[str]], version: int) -> None:
    """A group must ask for resources; since 1.36 it may instead be what others are in one subtree with."""
    if not any(group.resources for group in groups):
        if version < GRANULAR:
            raise BadQuery("Invalid query string parameters: 'resources' is a required property.")
        if version < SAME_SUBTREE:
            raise BadQuery("At least one request group (`resources` or `resources{N}`) is required.")
        raise MissingValue("There must be at least one resources or resources[$S] parameter.")
    together = frozenset().union(*same_subtree)
    for group in groups:
        if group.resources or group.suffix in together:
            continue
        if version >= SAME_SUBTREE and group.suffix:
            raise BadQuery(
                "Resourceless suffixed group request should be specified in `same_subtree` query param: "
                f"bad group - {group.suffix}."
            )
        raise BadQuery(
            "All request groups must specify resources: all traits, member_of and in_tree parameters must be "
            f"associated with resources, those of the group '{group.suffix}' are orphaned."
        )
