"""What a token is worth at this moment, and which tokens are dead before their time."""

from __future__ import annotations

import msgspec
from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from kilonova.db import identity_roles
from kilonova.db.engine import Statement, Tx
from kilonova.db.identity_records import Domain, Project, Role, User, find
from kilonova.db.tables.identity import revision, revocations

_r = revocations
_REVOKE = Statement(
    insert_unless_there(_r)
    .values(audit_id=bindparam("audit_id"), expires_at=bindparam("expires_at"))
    .on_conflict_do_nothing()
)
_REVOKED = Statement(select(_r.c.audit_id).where(_r.c.audit_id == bindparam("audit_id")))
_FORGET = Statement(delete(_r).where(_r.c.expires_at < bindparam("moment")))
_REVISION = Statement(select(revision.c.number).where(revision.c.id == 1))
_FIRST = Statement(insert_unless_there(revision).values(id=1, number=0).on_conflict_do_nothing())
_COUNT = Statement(update(revision).where(revision.c.id == 1).values(number=revision.c.number + 1))


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """A user, what the token is for (a project, a domain, the system or nothing), and the roles there.

    ``roles`` are by name and include the implied ones.
    """

    user: User
    user_domain: Domain
    project: Project | None = None
    domain: Domain | None = None  # of the project, or the one that the token is for
    scope: str = "none"  # "none", "project", "domain", "system"
    roles: tuple[Role, ...] = ()

    @property
    def scope_generation(self) -> int:
        if self.project is not None:
            return self.project.generation
        return 0 if self.domain is None else self.domain.generation


def standing(tx: Tx, user_id: str, scope: str, scope_id: str) -> Standing | None:
    """None if the user, the domain or the project is gone or disabled, or the user has no role there."""
    user = find(tx, User, user_id)
    if user is None or not user.enabled:
        return None
    home = find(tx, Domain, user.domain_id)
    if home is None or not home.enabled:
        return None
    if scope == "none":
        return Standing(user=user, user_domain=home)
    project = find(tx, Project, scope_id) if scope == "project" else None
    domain: Domain | None = None
    if scope != "system":
        if scope == "project" and (project is None or not project.enabled):
            return None
        domain = find(tx, Domain, scope_id if project is None else project.domain_id)
        if domain is None or not domain.enabled:
            return None
    roles = tuple(identity_roles.roles_on(tx, user_id, scope, scope_id))
    if not roles:
        return None
    return Standing(user=user, user_domain=home, project=project, domain=domain, scope=scope, roles=roles)


def revoke(tx: Tx, audit_id: str, expires_at: int, now: int) -> None:
    """Note that a token is dead until ``expires_at``, when nobody takes it any more in any case."""
    tx.run(_REVOKE, audit_id=audit_id, expires_at=expires_at)
    tx.run(_FORGET, moment=now)


def is_revoked(tx: Tx, audit_id: str) -> bool:
    return tx.one(_REVOKED, audit_id=audit_id) is not None


def current_revision(tx: Tx) -> int:
    return int(tx.scalar(_REVISION) or 0)


def count_revision(tx: Tx) -> None:
    """Part of every change: caches of other processes are old from its commit on.

    On PostgreSQL this is also what puts changes of identity one after the other.
    """
    if not tx.run(_COUNT):
        tx.run(_FIRST)
        tx.run(_COUNT)
