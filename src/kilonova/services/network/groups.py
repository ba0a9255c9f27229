"""Security groups and their rules: what may be made, changed and deleted."""

from __future__ import annotations

from typing import Any

from kilonova.db import network_groups as groups
from kilonova.db import network_ledger as ledger
from kilonova.db.network_records import Rule, SecurityGroup
from kilonova.model.context import RequestContext
from kilonova.services.network.faults import (
    SecurityGroupCannotRemoveDefault,
    SecurityGroupCannotUpdateDefault,
    SecurityGroupDefaultAlreadyExists,
    SecurityGroupInUse,
    SecurityGroupNotFound,
    SecurityGroupRuleExists,
    SecurityGroupRuleNotFound,
)
from kilonova.services.network.rules import check_rule, same_rule
from kilonova.services.network.work import Work, owner_of, privileged

DEFAULT = "default"


def ensure_default(work: Work, project_id: str) -> str:
    """The id of the project's default group, which is made when it is first looked at."""
    found = groups.default_group(work.tx, project_id)
    if found is None:
        group = _insert(work, project_id, DEFAULT, "Default security group", True)
        groups.insert_default(work.tx, project_id, group.id)
        found = group.id
    return found


def create_group(work: Work, context: RequestContext, values: dict[str, Any]) -> SecurityGroup:
    """A group with rules that let everything out.  Raises SecurityGroupDefaultAlreadyExists, OverQuota."""
    project_id = owner_of(context, values)
    ensure_default(work, project_id)
    if values["name"].lower() == DEFAULT:
        raise SecurityGroupDefaultAlreadyExists
    return _insert(work, project_id, values["name"], values["description"], values["stateful"])


def _insert(work: Work, project_id: str, name: str, description: str, stateful: bool) -> SecurityGroup:
    group_id = work.new_uuid()
    is_default = name == DEFAULT
    group = SecurityGroup(group_id, project_id, name, description, stateful, 1, work.now, work.now)
    rules = [_rule(work, group, "egress", ethertype, None) for ethertype in ("IPv4", "IPv6")]
    if is_default:
        rules += [_rule(work, group, "ingress", ethertype, group_id) for ethertype in ("IPv4", "IPv6")]
    for resource, count in (("security_group", 1), ("security_group_rule", len(rules))):
        if is_default:  # which a project gets whatever its quota is
            ledger.use(work.tx, project_id, resource, count)
        else:
            work.use(project_id, resource, count)
    groups.insert_group(work.tx, group)
    groups.insert_rules(work.tx, rules)
    return group


def _rule(work: Work, group: SecurityGroup, direction: str, ethertype: str, remote: str | None) -> Rule:
    return Rule(
        id=work.new_uuid(),
        security_group_id=group.id,
        project_id=group.project_id,
        direction=direction,
        ethertype=ethertype,
        protocol=None,
        port_range_min=None,
        port_range_max=None,
        remote_ip_prefix=None,
        remote_group_id=remote,
        description="",
        revision=1,
        created_at=work.now,
        updated_at=work.now,
    )


def visible_group(work: Work, context: RequestContext, group_id: str, lock: bool = False) -> SecurityGroup:
    """The group, if the caller may see it.  Raises SecurityGroupNotFound."""
    found = (groups.locked_group if lock else groups.group)(work.tx, group_id)
    if found is None or not (privileged(context) or found.project_id == context.project_id):
        raise SecurityGroupNotFound(group_id)
    return found


def update_group(work: Work, context: RequestContext, group_id: str, values: dict[str, Any]) -> SecurityGroup:
    """Raises SecurityGroupNotFound, SecurityGroupCannotUpdateDefault, SecurityGroupInUse."""
    group = visible_group(work, context, group_id, lock=True)
    if "name" in values and values["name"] != group.name:
        if group.name == DEFAULT and groups.default_group(work.tx, group.project_id) == group.id:
            raise SecurityGroupCannotUpdateDefault("Updating the name of a default security group: no.")
        if values["name"].lower() == DEFAULT:
            raise SecurityGroupDefaultAlreadyExists
    if values.get("stateful", group.stateful) != group.stateful and groups.count_ports(work.tx, group.id):
        raise SecurityGroupInUse(group.id)
    return groups.update_group(work.tx, group_id, work.now, values) if values else group


def delete_group(work: Work, context: RequestContext, group_id: str) -> None:
    """Raises SecurityGroupNotFound, SecurityGroupInUse, SecurityGroupCannotRemoveDefault."""
    group = visible_group(work, context, group_id, lock=True)
    if groups.default_group(work.tx, group.project_id) == group.id and not context.is_admin:
        raise SecurityGroupCannotRemoveDefault("The default security group can only be removed by an admin.")
    groups.delete_default(work.tx, group_id)  # waits for boots that are joining it
    if groups.count_ports(work.tx, group_id):
        raise SecurityGroupInUse(group_id)
    touched: dict[str, int] = {}
    for rule in groups.rules_touching(work.tx, group_id):
        touched[rule.project_id] = touched.get(rule.project_id, 0) + 1
        if rule.security_group_id != group_id:
            work.ports.update(groups.ports_in(work.tx, rule.security_group_id))
        ledger.delete_tags(work.tx, rule.id)
    groups.delete_group(work.tx, group_id)
    ledger.delete_tags(work.tx, group_id)
    for project_id, count in touched.items():
        work.use(project_id, "security_group_rule", -count)
    work.use(group.project_id, "security_group", -1)


def create_rules(work: Work, context: RequestContext, entries: list[dict[str, Any]]) -> list[Rule]:
    """All of these rules or none.  Raises what ``check_rule`` does, SecurityGroupNotFound,
    SecurityGroupRuleExists, OverQuota."""
    return [_create_rule(work, context, dict(values)) for values in entries]


def _create_rule(work: Work, context: RequestContext, values: dict[str, Any]) -> Rule:
    group = visible_group(work, context, values["security_group_id"], lock=True)
    values.pop("project_id", None)  # a rule belongs to whom its group belongs
    check_rule(values)
    if values["remote_group_id"] is not None:
        visible_group(work, context, values["remote_group_id"])
    rule = Rule(
        id=work.new_uuid(),
        project_id=group.project_id,
        revision=1,
        created_at=work.now,
        updated_at=work.now,
        **values,
    )
    for other in groups.rules(work.tx, group.id):
        if same_rule(rule, other):
            raise SecurityGroupRuleExists(other.id)
    work.use(group.project_id, "security_group_rule", 1)
    groups.insert_rules(work.tx, [rule])
    work.ports.update(groups.ports_in(work.tx, group.id))
    return rule


def visible_rule(work: Work, context: RequestContext, rule_id: str) -> Rule:
    """Raises SecurityGroupRuleNotFound."""
    found = groups.rule(work.tx, rule_id)
    if found is None or not (privileged(context) or found.project_id == context.project_id):
        raise SecurityGroupRuleNotFound(rule_id)
    return found


def delete_rule(work: Work, context: RequestContext, rule_id: str) -> None:
    """Raises SecurityGroupRuleNotFound."""
    rule = visible_rule(work, context, rule_id)
    work.ports.update(groups.ports_in(work.tx, rule.security_group_id))
    groups.delete_rule(work.tx, rule_id)
    ledger.delete_tags(work.tx, rule_id)
    work.use(rule.project_id, "security_group_rule", -1)
