"""Who has which role where: assignments, implied roles, memberships."""

from __future__ import annotations

import msgspec
from sqlalchemy import and_, bindparam, delete, or_, select
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from kilonova.db.engine import Statement, Tx
from kilonova.db.identity_records import Group, Role, User, from_row
from kilonova.db.tables.identity import assignments, groups, implications, memberships, roles, users

SYSTEM = "all"  # the target id of assignments on the system

_a, _m, _i = assignments, memberships, implications


class Assignment(msgspec.Struct, frozen=True, order=True):
    """``actor_type`` is user or group; ``target_type`` is project, domain or system."""

    actor_type: str
    actor_id: str
    target_type: str
    target_id: str
    role_id: str


_FIELDS = Assignment.__struct_fields__
_columns = [_a.c[name] for name in _FIELDS]
_ADD = Statement(
    insert_unless_there(_a).values({name: bindparam(name) for name in _FIELDS}).on_conflict_do_nothing()
)
_DROP = Statement(delete(_a).where(*(_a.c[name] == bindparam(name) for name in _FIELDS)))
_THERE = Statement(select(_a.c.role_id).where(*(_a.c[name] == bindparam(name) for name in _FIELDS)))
_OF_USER = or_(
    and_(_a.c.actor_type == "user", _a.c.actor_id == bindparam("user_id")),
    and_(
        _a.c.actor_type == "group",
        _a.c.actor_id.in_(select(_m.c.group_id).where(_m.c.user_id == bindparam("user_id"))),
    ),
)
_ROLES_ON = Statement(
    select(_a.c.role_id)
    .where(_OF_USER, _a.c.target_type == bindparam("target_type"), _a.c.target_id == bindparam("target_id"))
    .distinct()
)
_TARGETS = Statement(
    select(_a.c.target_id).where(_OF_USER, _a.c.target_type == bindparam("target_type")).distinct()
)
_ALL_ROLES = Statement(select(roles).order_by(roles.c.name))
_ALL_IMPLIED = Statement(select(_i.c.prior_role_id, _i.c.implied_role_id))
_IMPLY = Statement(
    insert_unless_there(_i)
    .values(prior_role_id=bindparam("prior"), implied_role_id=bindparam("implied"))
    .on_conflict_do_nothing()
)
_IMPLY_NO_MORE = Statement(
    delete(_i).where(_i.c.prior_role_id == bindparam("prior"), _i.c.implied_role_id == bindparam("implied"))
)
_JOIN = Statement(
    insert_unless_there(_m)
    .values(group_id=bindparam("group_id"), user_id=bindparam("user_id"))
    .on_conflict_do_nothing()
)
_BOTH = (_m.c.group_id == bindparam("group_id"), _m.c.user_id == bindparam("user_id"))
_LEAVE = Statement(delete(_m).where(*_BOTH))
_IS_MEMBER = Statement(select(_m.c.user_id).where(*_BOTH))
_MEMBERS = Statement(
    select(users)
    .join_from(users, _m, users.c.id == _m.c.user_id)
    .where(_m.c.group_id == bindparam("group_id"))
    .order_by(users.c.id)
)
_GROUPS = Statement(
    select(groups)
    .join_from(groups, _m, groups.c.id == _m.c.group_id)
    .where(_m.c.user_id == bindparam("user_id"))
    .order_by(groups.c.id)
)


def assign(tx: Tx, assignment: Assignment) -> None:
    """Again is no error."""
    tx.run(_ADD, **msgspec.structs.asdict(assignment))


def unassign(tx: Tx, assignment: Assignment) -> bool:
    """False if there was no such assignment."""
    return tx.run(_DROP, **msgspec.structs.asdict(assignment)) > 0


def is_assigned(tx: Tx, assignment: Assignment) -> bool:
    return tx.one(_THERE, **msgspec.structs.asdict(assignment)) is not None


def list_assignments(tx: Tx, **equal: str) -> list[Assignment]:
    """Assignments whose fields are as given."""
    clause = select(*_columns).where(*(_a.c[name] == value for name, value in equal.items()))
    return sorted(Assignment(*row) for row in tx.all(clause))


def assignments_of_user(tx: Tx, user_id: str) -> list[Assignment]:
    """A user's own, and those of the groups that the user is in."""
    return sorted(Assignment(*row) for row in tx.all(select(*_columns).where(_OF_USER), user_id=user_id))


def roles_on(tx: Tx, user_id: str, target_type: str, target_id: str) -> list[Role]:
    """A user's roles on something, by name, with those that they imply; empty for no access."""
    found = tx.all(_ROLES_ON, user_id=user_id, target_type=target_type, target_id=target_id)
    if not found:
        return []
    ids = closure(implied(tx), {row[0] for row in found})
    return [role for role in all_roles(tx) if role.id in ids]


def targets(tx: Tx, user_id: str, target_type: str) -> set[str]:
    """The ids of the projects (or domains, or the system) on which a user has any role."""
    return {row[0] for row in tx.all(_TARGETS, user_id=user_id, target_type=target_type)}


def all_roles(tx: Tx) -> list[Role]:
    """By name."""
    return [from_row(Role, row) for row in tx.all(_ALL_ROLES)]


def implied(tx: Tx) -> dict[str, set[str]]:
    """Role id -> ids of the roles that it implies directly."""
    result: dict[str, set[str]] = {}
    for prior, other in tx.all(_ALL_IMPLIED):
        result.setdefault(prior, set()).add(other)
    return result


def closure(implications: dict[str, set[str]], ids: set[str]) -> set[str]:
    """The roles themselves and all that they imply, directly or not."""
    found, waiting = set(ids), list(ids)
    while waiting:
        new = implications.get(waiting.pop(), set()) - found
        found |= new
        waiting.extend(new)
    return found


def imply(tx: Tx, prior: str, other: str) -> None:
    tx.run(_IMPLY, prior=prior, implied=other)


def imply_no_more(tx: Tx, prior: str, other: str) -> bool:
    """False if it did not imply it."""
    return tx.run(_IMPLY_NO_MORE, prior=prior, implied=other) > 0


def join(tx: Tx, group_id: str, user_id: str) -> None:
    tx.run(_JOIN, group_id=group_id, user_id=user_id)


def leave(tx: Tx, group_id: str, user_id: str) -> bool:
    """False if the user was not in the group."""
    return tx.run(_LEAVE, group_id=group_id, user_id=user_id) > 0


def is_member(tx: Tx, group_id: str, user_id: str) -> bool:
    return tx.one(_IS_MEMBER, group_id=group_id, user_id=user_id) is not None


def members(tx: Tx, group_id: str) -> list[User]:
    return [from_row(User, row) for row in tx.all(_MEMBERS, group_id=group_id)]


def groups_of(tx: Tx, user_id: str) -> list[Group]:
    return [from_row(Group, row) for row in tx.all(_GROUPS, user_id=user_id)]


def forget_actor(tx: Tx, actor_type: str, actor_id: str) -> None:
    """Remove all that a user or a group that is going has been given."""
    tx.run(delete(_a).where(_a.c.actor_type == actor_type, _a.c.actor_id == actor_id))
    column = _m.c.user_id if actor_type == "user" else _m.c.group_id
    tx.run(delete(_m).where(column == actor_id))


def forget_target(tx: Tx, target_type: str, target_id: str) -> None:
    """Remove all assignments on a project or a domain that is going."""
    tx.run(delete(_a).where(_a.c.target_type == target_type, _a.c.target_id == target_id))


def forget_role(tx: Tx, role_id: str) -> None:
    """Remove a role that is going from wherever it is named."""
    tx.run(delete(_a).where(_a.c.role_id == role_id))
    tx.run(delete(_i).where(or_(_i.c.prior_role_id == role_id, _i.c.implied_role_id == role_id)))
