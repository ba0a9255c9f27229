"""Deleting and disabling, with all that hangs on it."""

from __future__ import annotations

from sqlalchemy import select, update

from kilonova.db import identity_records as records
from kilonova.db import identity_roles
from kilonova.db.engine import Tx
from kilonova.db.identity_records import Domain, Group, Project, Role, User
from kilonova.db.tables.identity import projects, users
from kilonova.errors import Forbidden


def remove_user(tx: Tx, id: str) -> None:
    """Raises NotFound."""
    records.drop(tx, User, id)
    identity_roles.forget_actor(tx, "user", id)


def remove_group(tx: Tx, id: str) -> None:
    """Raises NotFound."""
    records.drop(tx, Group, id)
    identity_roles.forget_actor(tx, "group", id)


def remove_role(tx: Tx, id: str) -> None:
    """Raises NotFound."""
    records.drop(tx, Role, id)
    identity_roles.forget_role(tx, id)


def remove_project(tx: Tx, id: str) -> None:
    """Raises NotFound, and Forbidden for a project with others under it."""
    records.show(tx, Project, id)
    if tx.one(select(projects.c.id).where(projects.c.parent_id == id).limit(1)) is not None:
        raise Forbidden(f"Cannot delete project {id} since it is not a leaf in the hierarchy.")
    _drop_project(tx, id)


def _drop_project(tx: Tx, id: str) -> None:
    records.drop(tx, Project, id)
    identity_roles.forget_target(tx, "project", id)
    tx.run(update(users).where(users.c.default_project_id == id).values(default_project_id=None))


def remove_domain(tx: Tx, id: str) -> None:
    """Delete a domain with its users, groups and projects.

    Raises NotFound, and Forbidden for one that is enabled.
    """
    if records.show(tx, Domain, id).enabled:
        raise Forbidden(f"Cannot delete a domain that is enabled, please disable it first: {id}.")
    for project in records.select_all(tx, Project, {"domain_id": id}):
        _drop_project(tx, project.id)
    for user in records.select_all(tx, User, {"domain_id": id}):
        remove_user(tx, user.id)
    for group in records.select_all(tx, Group, {"domain_id": id}):
        remove_group(tx, group.id)
    records.drop(tx, Domain, id)
    identity_roles.forget_target(tx, "domain", id)


def end_tokens_of_domain(tx: Tx, id: str) -> None:
    """Have every token of its users and for its projects be dead, for good."""
    for table in (users, projects):
        tx.run(update(table).where(table.c.domain_id == id).values(generation=table.c.generation + 1))
