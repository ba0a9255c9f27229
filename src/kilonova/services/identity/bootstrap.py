"""What an identity service has on its first day: a domain, roles, projects and two users."""

from __future__ import annotations

import asyncio

import msgspec

from kilonova.clock import Clock
from kilonova.db import identity_records as records
from kilonova.db import identity_roles, identity_tokens
from kilonova.db.engine import Database, Tx
from kilonova.db.identity_records import Domain, Project, R, Role, User
from kilonova.db.identity_roles import SYSTEM, Assignment
from kilonova.services.identity.builtin import new_id
from kilonova.services.identity.passwords import Passwords

DOMAIN = Domain(id="default", name="Default", description="The default domain")
ROLES = ("reader", "member", "manager", "admin", "service")
IMPLIED = (("admin", "manager"), ("manager", "member"), ("member", "reader"))
PROJECTS = {"admin": "For administrators", "service": "For services", "demo": "For users"}


class Bootstrapped(msgspec.Struct, frozen=True):
    """Ids by name."""

    domain_id: str
    roles: dict[str, str]
    projects: dict[str, str]
    users: dict[str, str]


async def bootstrap(
    db: Database,
    clock: Clock,
    admin_password: str,
    user_password: str,
    *,
    passwords: Passwords | None = None,
) -> Bootstrapped:
    """Make what is missing; what is there, passwords too, stays as it is.

    The users: ``admin``, admin of the project admin and of the system; ``demo``, member of the project demo.
    """
    there = await db.read(lambda tx: {name for name in ("admin", "demo") if _named(tx, User, name)})
    hasher = passwords or Passwords(clock)
    wanted = {"admin": admin_password, "demo": user_password}
    missing = [name for name in wanted if name not in there]
    hashes = await asyncio.gather(*(hasher.hash(wanted[name]) for name in missing))
    if passwords is None:
        hasher.close()
    return await db.write(lambda tx: _make(tx, dict(zip(missing, hashes, strict=True))))


def _named(tx: Tx, kind: type[R], name: str) -> R | None:
    return records.find_named(tx, kind, name, None if kind is Role else DOMAIN.id)


def _make(tx: Tx, hashes: dict[str, str]) -> Bootstrapped:
    identity_tokens.count_revision(tx)
    if records.find(tx, Domain, DOMAIN.id) is None:
        records.add(tx, DOMAIN)
    first_day = not identity_roles.all_roles(tx)
    roles = {name: _role(tx, name) for name in ROLES}
    if first_day:
        for prior, other in IMPLIED:
            identity_roles.imply(tx, roles[prior], roles[other])
    projects = {name: _project(tx, name) for name in PROJECTS}
    users = {name: _user(tx, name, hashes, projects[name]) for name in ("admin", "demo")}
    for user, kind, target, role in (
        ("admin", "project", projects["admin"], "admin"),
        ("admin", "system", SYSTEM, "admin"),
        ("demo", "project", projects["demo"], "member"),
    ):
        if user in hashes:  # what an administrator has taken away since stays away
            identity_roles.assign(tx, Assignment("user", users[user], kind, target, roles[role]))
    return Bootstrapped(DOMAIN.id, roles, projects, users)


def _role(tx: Tx, name: str) -> str:
    found = _named(tx, Role, name)
    return found.id if found else records.add(tx, Role(id=new_id(), name=name)).id


def _project(tx: Tx, name: str) -> str:
    found = _named(tx, Project, name)
    if found is not None:
        return found.id
    made = Project(
        id=new_id(), name=name, domain_id=DOMAIN.id, parent_id=DOMAIN.id, description=PROJECTS[name]
    )
    return records.add(tx, made).id


def _user(tx: Tx, name: str, hashes: dict[str, str], project_id: str) -> str:
    found = _named(tx, User, name)
    if found is not None:
        return found.id
    made = User(
        id=new_id(),
        name=name,
        domain_id=DOMAIN.id,
        default_project_id=project_id,
        password_hash=hashes[name],
    )
    return records.add(tx, made).id
