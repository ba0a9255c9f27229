"""Answers: records as Keystone's API shows them."""

from __future__ import annotations

from typing import Any

from kilonova.clock import iso_micro
from kilonova.db.identity_records import Domain, Group, Project, Role, User
from kilonova.services.identity.bootstrap import ROLES
from kilonova.services.identity.builtin import Token
from kilonova.services.identity.call import Call
from kilonova.services.identity.catalog import Catalog

View = dict[str, Any]

ID, STATUS, UPDATED = "v3.14", "stable", "2020-04-07T00:00:00Z"
MEDIA_TYPES = [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}]


def version(url: str) -> View:
    return {
        "id": ID,
        "status": STATUS,
        "updated": UPDATED,
        "links": [{"rel": "self", "href": f"{url}/v3/"}],
        "media-types": MEDIA_TYPES,
    }


def domain(call: Call, found: Domain) -> View:
    return {
        "tags": [],
        **found.extra,
        "id": found.id,
        "name": found.name,
        "description": found.description,
        "enabled": found.enabled,
        "options": {},
        "links": call.link("domains", found.id),
    }


def project(call: Call, found: Project) -> View:
    return {
        **found.extra,
        "id": found.id,
        "name": found.name,
        "domain_id": found.domain_id,
        "parent_id": found.parent_id,
        "description": found.description,
        "enabled": found.enabled,
        "is_domain": False,
        "tags": list(found.tags),
        "options": {},
        "links": call.link("projects", found.id),
    }


def user(call: Call, found: User) -> View:
    view = {
        **found.extra,
        "id": found.id,
        "name": found.name,
        "domain_id": found.domain_id,
        "enabled": found.enabled,
        "password_expires_at": None,
        "options": {},
        "links": call.link("users", found.id),
    }
    if found.default_project_id is not None:
        view["default_project_id"] = found.default_project_id
    return view


def group(call: Call, found: Group) -> View:
    return {
        **found.extra,
        "id": found.id,
        "name": found.name,
        "domain_id": found.domain_id,
        "description": found.description,
        "links": call.link("groups", found.id),
    }


def role(call: Call, found: Role) -> View:
    return {
        **found.extra,
        "id": found.id,
        "name": found.name,
        "domain_id": None,
        "description": found.description,
        "options": {"immutable": True} if found.name in ROLES else {},
        "links": call.link("roles", found.id),
    }


def token(found: Token, catalog: Catalog | None) -> View:
    """``catalog`` None leaves it out, as it is for a token without a scope."""
    payload, standing = found.payload, found.standing
    view: View = {
        "methods": list(payload.methods),
        "user": {
            "id": standing.user.id,
            "name": standing.user.name,
            "domain": _named(standing.user_domain),
            "password_expires_at": None,
        },
        "audit_ids": list(payload.audit_ids),
        "issued_at": iso_micro(payload.issued_at) + "Z",
        "expires_at": iso_micro(payload.expires_at) + "Z",
    }
    if standing.scope == "none":
        return view
    if standing.project is not None and standing.domain is not None:
        view["project"] = {**_named(standing.project), "domain": _named(standing.domain)}
        view["is_domain"] = False
    elif standing.domain is not None:
        view["domain"] = _named(standing.domain)
    else:
        view["system"] = {"all": True}
    view["roles"] = [_named(each) for each in standing.roles]
    if catalog is not None:
        view["catalog"] = catalog
    return view


def _named(found: Domain | Project | Role) -> dict[str, str]:
    return {"id": found.id, "name": found.name}
