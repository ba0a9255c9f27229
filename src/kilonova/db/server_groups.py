"""Server groups: who is in one, and where its members may be.

Changing the group's row is its lock: whoever books a host for a member does it first, and then looks where
the others are booked.  Decisions for one group follow one another, so its policy holds whatever races.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import bindparam, delete, distinct, exists, func, select, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.placement import allocations, provider_traits, resource_providers
from kilonova.db.tables.scheduling import server_group_members, server_groups
from kilonova.errors import NotFound, OverQuota

AFFINITY, ANTI_AFFINITY = "affinity", "anti-affinity"
MOST = "max_server_per_host"
CHUNK = 64  # groups whose members one statement reads
SHARES = "MISC_SHARES_VIA_AGGREGATE"


class ServerGroup(msgspec.Struct, frozen=True, kw_only=True):
    """``members`` are servers that have not been deleted, by their ids."""

    id: int
    uuid: str
    project_id: str
    user_id: str
    name: str
    policy: str
    rules: dict[str, int]
    created_at: int
    members: tuple[str, ...] = ()

    @property
    def most(self) -> int:
        """Members that one host may have under anti-affinity."""
        return self.rules.get(MOST, 1)


_g, _m, _a, _p, _t = (
    server_groups.c,
    server_group_members.c,
    allocations.c,
    resource_providers.c,
    provider_traits.c,
)
_names = ("id", "uuid", "project_id", "user_id", "name", "policy", "rules", "created_at")
_columns = [_g[name] for name in _names]

INSERT = insert_into(server_groups, returning="id")
SHOW = Statement(select(*_columns).where(_g.uuid == bindparam("uuid")))
ALL = Statement(select(*_columns).order_by(_g.id).limit(bindparam("most")).offset(bindparam("skip")))
OF_PROJECT = Statement(
    select(*_columns)
    .where(_g.project_id == bindparam("project_id"))
    .order_by(_g.id)
    .limit(bindparam("most"))
    .offset(bindparam("skip"))
)
COUNT = Statement(
    select(_g.user_id, func.count()).where(_g.project_id == bindparam("project_id")).group_by(_g.user_id)
)
LOCK = Statement(update(server_groups).where(_g.uuid == bindparam("of")).values(version=_g.version + 1))
DROP = Statement(delete(server_groups).where(_g.id == bindparam("of")))
ADD_MEMBER = insert_into(server_group_members)
DROP_MEMBER = Statement(delete(server_group_members).where(_m.instance_uuid == bindparam("of")))
DROP_MEMBERS = Statement(delete(server_group_members).where(_m.group_id == bindparam("of")))
MEMBERS = Statement(
    select(_m.instance_uuid, _m.user_id).where(_m.group_id == bindparam("of")).order_by(_m.instance_uuid)
)
MEMBERS_OF = Statement(
    select(_m.group_id, _m.instance_uuid)
    .where(_m.group_id.in_([bindparam(f"g{number}") for number in range(CHUNK)]))
    .order_by(_m.instance_uuid)
)
GROUP_OF = Statement(
    select(_g.uuid)
    .join_from(server_groups, server_group_members, _g.id == _m.group_id)
    .where(_m.instance_uuid == bindparam("server"))
)
_shared = exists().where(_t.provider == _p.root, _t.trait == SHARES)
WHERE = Statement(
    select(_p.root, func.count(distinct(_a.consumer)))
    .join_from(server_group_members, allocations, _a.consumer == _m.instance_uuid)
    .join(resource_providers, _p.uuid == _a.provider)
    .where(_m.group_id == bindparam("of"), _m.instance_uuid != bindparam("but"), ~_shared)
    .group_by(_p.root)
)

_encode = msgspec.json.Encoder().encode
_rules = msgspec.json.Decoder(dict[str, int]).decode


def _from_row(row: Row) -> ServerGroup:
    values = dict(zip(_names, row, strict=True))
    values["rules"] = _rules(values["rules"])
    return ServerGroup(**values)


def _with_members(tx: Tx, groups: list[ServerGroup]) -> list[ServerGroup]:
    """By one statement for each ``CHUNK`` of them."""
    members: dict[int, list[str]] = {}
    numbers = [group.id for group in groups]
    for start in range(0, len(numbers), CHUNK):
        chunk = numbers[start : start + CHUNK]
        chunk += chunk[-1:] * (CHUNK - len(chunk))
        for number, server in tx.all(MEMBERS_OF, **{f"g{at}": one for at, one in enumerate(chunk)}):
            members.setdefault(number, []).append(server)
    return [msgspec.structs.replace(group, members=tuple(members.get(group.id, ()))) for group in groups]


def find(tx: Tx, uuid: str) -> ServerGroup | None:
    """Without its members."""
    row = tx.one(SHOW, uuid=uuid)
    return None if row is None else _from_row(row)


def show(tx: Tx, uuid: str) -> ServerGroup:
    """Raises NotFound."""
    found = find(tx, uuid)
    if found is None:
        raise not_found(uuid)
    return _with_members(tx, [found])[0]


def not_found(uuid: str) -> NotFound:
    return NotFound(f"Instance group {uuid} could not be found.")


def list_page(tx: Tx, project_id: str | None, *, most: int, skip: int = 0) -> list[ServerGroup]:
    """Of one project, or of all; oldest first."""
    if project_id is None:
        rows = tx.all(ALL, most=most, skip=skip)
    else:
        rows = tx.all(OF_PROJECT, project_id=project_id, most=most, skip=skip)
    return _with_members(tx, [_from_row(row) for row in rows])


def create(tx: Tx, group: ServerGroup, *, limit: int, user_limit: int | None) -> ServerGroup:
    """Add a group (its number is given here).

    Limits: of the project, which the caller has locked, and of the user if he has his own; negative is none.
    Raises OverQuota.
    """
    counts = _counts(tx, group.project_id)
    own = counts.get(group.user_id, 0)
    if 0 <= limit <= sum(counts.values()) or (user_limit is not None and 0 <= user_limit <= own):
        raise OverQuota("Quota exceeded, too many server groups.")
    values = {name: getattr(group, name) for name in _names if name != "id"}
    values["rules"] = _encode(group.rules).decode()
    number = int(tx.scalar(INSERT, version=0, **values))
    return msgspec.structs.replace(group, id=number)


def _counts(tx: Tx, project_id: str) -> dict[str, int]:
    """User -> groups that he has made in the project."""
    return {row[0]: int(row[1]) for row in tx.all(COUNT, project_id=project_id)}


def count(tx: Tx, project_id: str, user_id: str | None = None) -> int:
    counts = _counts(tx, project_id)
    return sum(counts.values()) if user_id is None else counts.get(user_id, 0)


def remove(tx: Tx, uuid: str) -> None:
    """The servers of the group go on, bound by nothing.  Raises NotFound."""
    if not tx.run(LOCK, of=uuid):
        raise not_found(uuid)
    found = show(tx, uuid)
    tx.run(DROP_MEMBERS, of=found.id)
    tx.run(DROP, of=found.id)


def add_members(tx: Tx, uuid: str, servers: Sequence[str], user_id: str, limit: int) -> None:
    """Put servers that are being made into a group.

    ``limit``: members that one user may have in it, negative for any number.  Raises NotFound, OverQuota.
    """
    if not tx.run(LOCK, of=uuid):
        raise not_found(uuid)
    found = find(tx, uuid)
    assert found is not None
    own = sum(1 for row in tx.all(MEMBERS, of=found.id) if row[1] == user_id)
    if 0 <= limit < own + len(servers):
        raise OverQuota("Quota exceeded, too many servers in group")
    rows = [{"group_id": found.id, "instance_uuid": server, "user_id": user_id} for server in servers]
    tx.run_many(ADD_MEMBER, rows)


def forget_member(tx: Tx, server: str) -> None:
    """A server that is gone is in no group."""
    tx.run(DROP_MEMBER, of=server)


def group_of(tx: Tx, server: str) -> str | None:
    """The uuid of the group that the server is in."""
    found = tx.scalar(GROUP_OF, server=server)
    return None if found is None else str(found)


def hosts_of_members(tx: Tx, number: int, *, but: str) -> dict[str, int]:
    """Root provider (a compute node's uuid) -> members that have booked something there."""
    return {row[0]: int(row[1]) for row in tx.all(WHERE, of=number, but=but)}


def violation(tx: Tx, uuid: str, server: str, compute_id: str) -> str | None:
    """Why a member may not be on that host (inventory MG-BLD-7); None when it may.

    To be called in the transaction that books the host: the group is locked until that ends.  A group that
    was deleted binds nobody.
    """
    if not tx.run(LOCK, of=uuid):
        return None
    found = find(tx, uuid)
    if found is None or found.policy not in (AFFINITY, ANTI_AFFINITY):
        return None
    others = hosts_of_members(tx, found.id, but=server)
    if found.policy == ANTI_AFFINITY and others.get(compute_id, 0) >= found.most:
        return (
            f"it has {others[compute_id]} of the servers of the group {uuid}, {found.most} may be on one host"
        )
    if found.policy == AFFINITY and others and compute_id not in others:
        return f"the other servers of the group {uuid} are not there"
    return None
