"""/v2.0/security-groups and /v2.0/security-group-rules."""

from __future__ import annotations

from typing import Any

from kilonova.db import network_groups as groups
from kilonova.db.network_records import GROUPS, RULES, Rule, SecurityGroup
from kilonova.model.context import RequestContext
from kilonova.services.network import api_fields as f
from kilonova.services.network.api_fields import OWNER, REQUIRED, Field
from kilonova.services.network.api_lists import Filters
from kilonova.services.network.api_resource import Resource, tags_for, times_of
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.groups import (
    create_group,
    create_rules,
    delete_group,
    delete_rule,
    ensure_default,
    update_group,
    visible_group,
    visible_rule,
)
from kilonova.services.network.rules import normal_protocol
from kilonova.services.network.work import Work, privileged

_COMMON = {
    "id": "id",
    "description": "description",
    "project_id": "project_id",
    "tenant_id": "project_id",
    "revision_number": "revision",
    "created_at": "created_at",
    "updated_at": "updated_at",
}


def _stateful(value: Any) -> bool:
    if not f.boolean(value):
        raise ValueError("stateless security groups are not offered by this network service")
    return True


def _ethertype(value: Any) -> str:
    """IPv4 and IPv6 in any mixture of small and capital letters; others are for ``check_rule`` to refuse."""
    text = "IPv4" if value is None else str(value)
    return {"ipv4": "IPv4", "ipv6": "IPv6"}.get(text.lower(), text)


_GROUP_FIELDS = {
    **OWNER,
    "name": Field("name", f.string(255), ""),
    "description": Field("description", f.string(255), ""),
    "stateful": Field("stateful", _stateful, True),
}

_RULE_FIELDS = {
    **OWNER,
    "security_group_id": Field("security_group_id", f.identifier, REQUIRED, put=False),
    "direction": Field("direction", f.one_of("ingress", "egress"), REQUIRED, put=False),
    "ethertype": Field("ethertype", _ethertype, "IPv4", put=False),
    "protocol": Field("protocol", normal_protocol, None, put=False),
    "port_range_min": Field("port_range_min", f.optional(f.whole(-(2**31), 2**31)), put=False),
    "port_range_max": Field("port_range_max", f.optional(f.whole(-(2**31), 2**31)), put=False),
    "remote_ip_prefix": Field("remote_ip_prefix", f.optional(f.cidr), put=False),
    "remote_group_id": Field("remote_group_id", f.optional(f.identifier), put=False),
    "description": Field("description", f.string(255), "", put=False),
}


def show_rules(work: Work, context: RequestContext, records: list[Rule]) -> list[dict[str, Any]]:
    tags = tags_for(work, records)
    return [_rule_view(record, tags[record.id]) for record in records]


def _rule_view(record: Rule, tags: list[str]) -> dict[str, Any]:
    return {
        "id": record.id,
        "tenant_id": record.project_id,
        "project_id": record.project_id,
        "security_group_id": record.security_group_id,
        "direction": record.direction,
        "ethertype": record.ethertype,
        "protocol": record.protocol,
        "port_range_min": record.port_range_min,
        "port_range_max": record.port_range_max,
        "remote_ip_prefix": record.remote_ip_prefix,
        "remote_group_id": record.remote_group_id,
        "remote_address_group_id": None,
        "description": record.description,
        "tags": tags,
        **times_of(record),
    }


def show_groups(work: Work, context: RequestContext, records: list[SecurityGroup]) -> list[dict[str, Any]]:
    tags = tags_for(work, records)
    rules = groups.rules_of_groups(work.tx, [record.id for record in records])
    rule_tags = tags_for(work, [rule for found in rules.values() for rule in found])
    return [
        {
            "id": record.id,
            "name": record.name,
            "description": record.description,
            "tenant_id": record.project_id,
            "project_id": record.project_id,
            "stateful": record.stateful,
            "shared": False,
            "security_group_rules": [_rule_view(each, rule_tags[each.id]) for each in rules[record.id]],
            "tags": tags[record.id],
            **times_of(record),
        }
        for record in records
    ]


async def _make_default(
    network: BuiltinNetwork, context: RequestContext, filters: dict[str, list[str]]
) -> None:
    """Looking at the security groups of a project makes its default one."""
    projects = {context.project_id} if context.project_id else set()
    if privileged(context):
        projects.update(each for name in ("project_id", "tenant_id") for each in filters.get(name, ()))

    def missing(work: Work) -> list[str]:
        return [
            each for each in sorted(filter(None, projects)) if groups.default_group(work.tx, each) is None
        ]

    found = await network.read(missing)
    if found:
        await network.write(lambda work: [ensure_default(work, each) for each in found])


GROUP = Resource(
    name="security_group",
    plural="security_groups",
    stored=GROUPS,
    fields=_GROUP_FIELDS,
    filters=Filters(GROUPS, {**_COMMON, "name": "name", "stateful": "stateful"}),
    show=show_groups,
    get=visible_group,
    create=lambda work, context, entries: [create_group(work, context, each) for each in entries],
    update=update_group,
    delete=delete_group,
    before_list=_make_default,
)

_RULE_COLUMNS = (
    "security_group_id",
    "direction",
    "ethertype",
    "protocol",
    "port_range_min",
    "port_range_max",
    "remote_ip_prefix",
    "remote_group_id",
)

RULE = Resource(
    name="security_group_rule",
    plural="security_group_rules",
    stored=RULES,
    fields=_RULE_FIELDS,
    filters=Filters(RULES, {**_COMMON, **{name: name for name in _RULE_COLUMNS}}),
    show=show_rules,
    get=visible_rule,
    create=create_rules,
    update=None,
    delete=delete_rule,
    before_list=_make_default,
)
