"""Quotas: limits by class, project and user, and what is used, counted with the servers themselves.

``quota_usages`` has one row for each user of a project and one for the project, whose ``user_id`` is empty.
Both are changed in the transaction that makes or removes the server, so they cannot drift; the row of the
project is what concurrent transactions wait for, so no limit can be overrun.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from sqlalchemy import BindParameter, and_, bindparam, delete, func, literal, or_, select, text, update

from kilonova.db import instance_mappings
from kilonova.db.engine import Row, Statement, Tx
from kilonova.db.tables.compute import instances, quota_limits, quota_usages
from kilonova.errors import OverQuota, TryAgain
from kilonova.model.flavor import Flavor
from kilonova.model.states import Vm

COUNTED = ("instances", "cores", "ram")
"""What servers use up, and is counted as they come and go."""

UNLIMITED = -1
CLASS, PROJECT, USER = "class", "project", "user"
DEFAULT = "default"
WHOLE = ""  # the user_id of the row that counts the whole project
_NO_MATTER = 2**62

_l, _u = quota_limits.c, quota_usages.c

LIMITS = Statement(
    select(_l.scope, _l.resource, _l.hard_limit).where(
        or_(
            and_(_l.scope == CLASS, _l.name == DEFAULT),
            and_(_l.scope == PROJECT, _l.name == bindparam("project_id")),
            and_(_l.scope == USER, _l.name == bindparam("user_in_project")),
        )
    )
)
LIMITS_OF = Statement(
    select(_l.resource, _l.hard_limit).where(_l.scope == bindparam("scope"), _l.name == bindparam("name"))
)
SET_LIMIT = Statement(
    text(
        "INSERT INTO quota_limits (scope, name, resource, hard_limit)"
        " VALUES (:scope, :name, :resource, :hard_limit)"
        " ON CONFLICT (scope, name, resource) DO UPDATE SET hard_limit = excluded.hard_limit"
    )
)
DROP_LIMITS = Statement(
    delete(quota_limits).where(_l.scope == bindparam("of_scope"), _l.name == bindparam("of_name"))
)
_prefix: BindParameter[str] = bindparam("prefix")
DROP_USERS_LIMITS = Statement(
    delete(quota_limits).where(_l.scope == USER, func.substr(_l.name, 1, func.length(_prefix)) == _prefix)
)
USAGE = Statement(
    select(*(_u[name] for name in COUNTED)).where(
        _u.project_id == bindparam("project_id"), _u.user_id == bindparam("user_id")
    )
)
USAGES = Statement(
    select(_u.user_id, *(_u[name] for name in COUNTED)).where(
        _u.project_id == bindparam("project_id"), _u.user_id.in_([WHOLE, bindparam("user_id")])
    )
)
MAKE_USAGE = Statement(
    text(
        "INSERT INTO quota_usages (project_id, user_id, instances, cores, ram)"
        " VALUES (:project_id, :user_id, 0, 0, 0) ON CONFLICT DO NOTHING"
    )
)
_more = {name: _u[name] + bindparam(f"add_{name}") for name in COUNTED}
RESERVE = Statement(
    update(quota_usages)
    .where(
        _u.project_id == bindparam("of_project"),
        or_(
            and_(_u.user_id == WHOLE, *(_u[name] <= bindparam(f"most_{name}") for name in COUNTED)),
            and_(
                _u.user_id == bindparam("of_user"),
                *(_u[name] <= bindparam(f"user_most_{name}") for name in COUNTED),
            ),
        ),
    )
    .values(**_more)
    .returning(_u.user_id)
)
ADD = Statement(
    update(quota_usages)
    .where(_u.project_id == bindparam("of_project"), _u.user_id.in_([WHOLE, bindparam("of_user")]))
    .values(**_more)
)
ADD_ONE = Statement(
    update(quota_usages)
    .where(_u.project_id == bindparam("of_project"), _u.user_id == bindparam("of_user"))
    .values(**_more)
)
ALL_USAGES = Statement(select(_u.project_id, _u.user_id, *(_u[name] for name in COUNTED)))
_i = instances.c
HELD = Statement(
    select(_i.project_id, _i.user_id, _i.flavor).where(
        _i.deleted_at.is_(None),
        _i.vm_state != Vm.SOFT_DELETED,
        # one that is leaving for another cell is counted by its mapping as soon as that says so
        _i.leaving.is_(None) | _i.uuid.not_in(instance_mappings.ELSEWHERE),
    )
)
WRITE_USAGE = Statement(
    update(quota_usages)
    .where(_u.project_id == bindparam("of_project"), _u.user_id == bindparam("of_user"))
    .values({name: bindparam(f"new_{name}") for name in COUNTED})
)
LOCK_USAGES = Statement(select(literal(1)).select_from(quota_usages).with_for_update())

_flavor = msgspec.json.Decoder(Flavor).decode


class Limits(dict[str, int]):
    """Resource -> the limit that holds for a user in a project.

    ``project`` and ``of_user`` are what is enforced: the project's limits for all of its users together,
    and those that were set for this user alone.
    """

    __slots__ = ("of_user", "project")

    def __init__(self, project: Mapping[str, int], of_user: Mapping[str, int]) -> None:
        super().__init__({**project, **of_user})
        self.project = dict(project)
        self.of_user = dict(of_user)


def room(limit: int, wanted: int) -> int | None:
    """How much may be in use before ``wanted`` more are taken; None: it does not matter."""
    return None if limit < 0 or wanted <= 0 else limit - wanted


def exceeded(limits: Mapping[str, int], used: Mapping[str, int], wanted: Mapping[str, int]) -> list[str]:
    """The resources of which there is not enough, by name."""
    return sorted(
        name
        for name, amount in wanted.items()
        if (most := room(limits.get(name, UNLIMITED), amount)) is not None and used.get(name, 0) > most
    )


def over_quota(
    names: list[str], limits: Mapping[str, int], used: Mapping[str, int], wanted: Mapping[str, int | str]
) -> OverQuota:
    """The refusal, in the words that clients of Nova look for."""

    def each(amounts: Mapping[str, int | str] | Mapping[str, int]) -> str:
        return ", ".join(str(amounts.get(name, 0)) for name in names)

    overs = ", ".join(names)
    return OverQuota(
        f"Quota exceeded for {overs}: Requested {each(wanted)}, "
        f"but already used {each(used)} of {each(limits)} {overs}"
    )


def effective_limits(tx: Tx, project_id: str, user_id: str | None, defaults: Mapping[str, int]) -> Limits:
    """What holds for a user of a project: one statement.

    The user's own limits go before the project's, those before the class ``default``'s, those before
    ``defaults`` (the options of [quota], by resource).  ``user_id`` None: for the project alone.
    """
    found: dict[str, dict[str, int]] = {CLASS: {}, PROJECT: {}, USER: {}}
    scope = user_scope(project_id, user_id) if user_id else WHOLE
    for kind, resource, limit in tx.all(LIMITS, project_id=project_id, user_in_project=scope):
        found[kind][resource] = limit
    return Limits({**defaults, **found[CLASS], **found[PROJECT]}, found[USER])


def user_scope(project_id: str, user_id: str) -> str:
    """The name under which limits of a user in a project stand."""
    return f"{project_id}/{user_id}"


def limits_of(tx: Tx, scope: str, name: str) -> dict[str, int]:
    """The limits that were set there, and no others."""
    return dict(tx.all(LIMITS_OF, scope=scope, name=name))


def set_limits(tx: Tx, scope: str, name: str, limits: Mapping[str, int]) -> None:
    """Set some limits of a class, a project or a user (``user_scope``)."""
    tx.run_many(
        SET_LIMIT,
        [
            {"scope": scope, "name": name, "resource": resource, "hard_limit": limit}
            for resource, limit in sorted(limits.items())
        ],
    )


def drop_limits(tx: Tx, project_id: str, user_id: str | None = None) -> None:
    """Back to the defaults: one user of a project, or the project with all of its users."""
    if user_id is not None:
        tx.run(DROP_LIMITS, of_scope=USER, of_name=user_scope(project_id, user_id))
        return
    tx.run(DROP_LIMITS, of_scope=PROJECT, of_name=project_id)
    tx.run(DROP_USERS_LIMITS, prefix=f"{project_id}/")


def usage(tx: Tx, project_id: str, user_id: str | None = None) -> dict[str, int]:
    """Instances, cores and ram (MiB) in use by a project, or by one of its users."""
    row = tx.one(USAGE, project_id=project_id, user_id=WHOLE if user_id is None else user_id)
    return dict(zip(COUNTED, row or (0, 0, 0), strict=True))


def reserve(
    tx: Tx, project_id: str, user_id: str, limits: Limits, *, instances: int, cores: int, ram: int
) -> None:
    """Take so much of a project's quota, or nothing: one statement, but for a user's very first server.

    Raises OverQuota; nothing was taken then, and the transaction may go on.
    """
    wanted = {"instances": instances, "cores": cores, "ram": ram}
    values: dict[str, int] = {}
    for name, amount in wanted.items():
        values[f"add_{name}"] = amount
        for prefix, some in (("most", limits.project), ("user_most", limits.of_user)):
            most = room(some.get(name, -1), amount)
            values[f"{prefix}_{name}"] = _NO_MATTER if most is None else most
    for _ in range(3):
        taken = {row[0] for row in tx.all(RESERVE, of_project=project_id, of_user=user_id, **values)}
        if len(taken) == 2:
            return
        for row in taken:
            _add(tx, ADD_ONE, project_id, row, {name: -amount for name, amount in wanted.items()})
        _refuse(tx.all(USAGES, project_id=project_id, user_id=user_id), limits, wanted)
        for row in (WHOLE, user_id):
            tx.run(MAKE_USAGE, project_id=project_id, user_id=row)
    raise TryAgain(f"The quota of the project {project_id} is changing too fast: repeat the request.")


def _refuse(rows: Iterable[Row], limits: Limits, wanted: Mapping[str, int]) -> None:
    used = {row[0]: dict(zip(COUNTED, row[1:], strict=True)) for row in rows}
    users = next((amounts for user, amounts in used.items() if user != WHOLE), {})
    for some, amounts in ((limits.project, used.get(WHOLE, {})), (limits.of_user, users)):
        names = exceeded(some, amounts, wanted)
        if names:
            raise over_quota(names, some, amounts, wanted)


def _add(tx: Tx, statement: Statement, project_id: str, user_id: str, amounts: Mapping[str, int]) -> int:
    values = {f"add_{name}": amount for name, amount in amounts.items()}
    return tx.run(statement, of_project=project_id, of_user=user_id, **values)


def lock_project(tx: Tx, project_id: str) -> None:
    """Have whoever else counts something of this project wait until the transaction ends."""
    nothing = dict.fromkeys(COUNTED, 0)
    if not _add(tx, ADD_ONE, project_id, WHOLE, nothing):
        tx.run(MAKE_USAGE, project_id=project_id, user_id=WHOLE)
        _add(tx, ADD_ONE, project_id, WHOLE, nothing)


def give_back(tx: Tx, project_id: str, user_id: str, *, instances: int, cores: int, ram: int) -> None:
    """Return what a server had: one statement.  To be called once a server, when it is deleted."""
    _add(tx, ADD, project_id, user_id, {"instances": -instances, "cores": -cores, "ram": -ram})


class Mismatch(msgspec.Struct, frozen=True, kw_only=True):
    """A count that is not what the servers add up to.  ``user_id`` empty: the project's."""

    project_id: str
    user_id: str
    counted: dict[str, int]
    held: dict[str, int]


def audit(tx: Tx) -> list[Mismatch]:
    """Compare the counts with the servers there are, those of other cells by their mappings; what is found
    is a fault of ours."""
    held: dict[tuple[str, str], dict[str, int]] = {}
    for project_id, user_id, flavor_text in [*tx.all(HELD), *tx.all(instance_mappings.HELD)]:
        flavor = _flavor(flavor_text)
        for key in ((project_id, WHOLE), (project_id, user_id)):
            sums = held.setdefault(key, dict.fromkeys(COUNTED, 0))
            sums["instances"] += 1
            sums["cores"] += flavor.vcpus
            sums["ram"] += flavor.memory_mb
    nothing = dict.fromkeys(COUNTED, 0)
    counted = {(row[0], row[1]): dict(zip(COUNTED, row[2:], strict=True)) for row in tx.all(ALL_USAGES)}
    return [
        Mismatch(project_id=key[0], user_id=key[1], counted=counted.get(key, nothing), held=sums)
        for key, sums in sorted({**dict.fromkeys(counted, nothing), **held}.items())
        if sums != counted.get(key, nothing)
    ]


def repair(tx: Tx) -> list[Mismatch]:
    """Write what the servers add up to; what was wrong."""
    tx.all(LOCK_USAGES)
    wrong = audit(tx)
    for each in wrong:
        tx.run(MAKE_USAGE, project_id=each.project_id, user_id=each.user_id)
        values = {f"new_{name}": amount for name, amount in each.held.items()}
        tx.run(WRITE_USAGE, of_project=each.project_id, of_user=each.user_id, **values)
    return wrong
