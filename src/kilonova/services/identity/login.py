"""Getting a token: who says to be whom, proves it how, and wants to do what.

Whatever fails, the answer is the same 401, after the same work: nobody learns which users, projects or
domains there are.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.db import identity_roles, identity_tokens
from kilonova.db.engine import Tx
from kilonova.db.identity_records import Domain, Project, User, find, find_named
from kilonova.db.identity_roles import SYSTEM
from kilonova.db.identity_tokens import Standing
from kilonova.errors import Invalid, Unauthenticated
from kilonova.services.identity import passwords, tokens
from kilonova.services.identity.builtin import BuiltinIdentity, Token
from kilonova.services.identity.tokens import Payload

METHODS = ("password", "token")
DEFAULT_DOMAIN = "default"


class Named(msgspec.Struct, frozen=True):
    """Something by its id, or by its name (in a domain, by the domain's id or name)."""

    id: str | None = None
    name: str | None = None
    domain_id: str | None = None
    domain_name: str | None = None


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a token.  ``scope`` None: not said, the user's default project if there is one."""

    methods: tuple[str, ...]
    user: Named | None = None
    password: str = msgspec.field(default="")
    token: str = ""
    scope: str | None = None
    target: Named = Named()

    def __repr__(self) -> str:
        return f"Login(methods={self.methods}, user={self.user}, scope={self.scope})"


def read_login(body: dict[str, Any]) -> Login:
    """Raises Invalid for a body that is no such request, Unauthenticated for a method that is not known."""
    auth = _part(body, "auth", "")
    identity = _part(auth, "identity", "auth")
    methods = identity.get("methods")
    if not isinstance(methods, list) or not methods or not all(isinstance(each, str) for each in methods):
        raise Invalid("auth.identity.methods must be a list of at least one name of a method.")
    unknown = [each for each in methods if each not in METHODS]
    if unknown:
        raise Unauthenticated("Attempted to authenticate with an unsupported method.")
    scope, target = _scope(auth.get("scope"))
    user: Named | None = None
    password = token = ""
    if "password" in methods:
        part = _part(_part(identity, "password", "auth.identity"), "user", "auth.identity.password")
        user = _named(part, "auth.identity.password.user")
        password = _text(part, "password", "auth.identity.password.user", passwords.MAX_LENGTH, needed=True)
    if "token" in methods:
        part = _part(identity, "token", "auth.identity")
        token = _text(part, "id", "auth.identity.token", tokens.MAX_LENGTH * 8, needed=True)
    unique = tuple(dict.fromkeys(methods))
    return Login(methods=unique, user=user, password=password, token=token, scope=scope, target=target)


def _part(outer: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    found = outer.get(name)
    path = f"{where}.{name}" if where else name
    if name not in outer:
        raise Invalid(f"{path} is missing: an object is expected there.")
    if not isinstance(found, dict):
        raise Invalid(f"{path} must be an object.")
    return found


def _text(part: dict[str, Any], name: str, where: str, longest: int = 255, *, needed: bool = False) -> str:
    found = part.get(name)
    if found is None and not needed:
        return ""
    if not isinstance(found, str):
        raise Invalid(f"{where}.{name} must be a string.")
    if len(found) > longest:
        raise Invalid(f"{where}.{name} is too long: at most {longest} characters are allowed.")
    return found


def _named(part: dict[str, Any], where: str, *, domain: bool = True) -> Named:
    id, name = _text(part, "id", where), _text(part, "name", where)
    if id:
        return Named(id=id)
    if not name:
        raise Invalid(f"{where} must have an id or a name.")
    if not domain:
        return Named(name=name)
    home = _named(_part(part, "domain", where), f"{where}.domain", domain=False)
    return Named(name=name, domain_id=home.id, domain_name=home.name)


def _scope(found: Any) -> tuple[str | None, Named]:
    if found is None:
        return None, Named()
    if found == "unscoped":
        return "none", Named()
    if not isinstance(found, dict) or len(found) != 1:
        raise Invalid("auth.scope must have exactly one of project, domain, system and unscoped.")
    if "project" in found:
        return "project", _named(_part(found, "project", "auth.scope"), "auth.scope.project")
    if "domain" in found:
        return "domain", _named(_part(found, "domain", "auth.scope"), "auth.scope.domain", domain=False)
    if "system" in found:
        if _part(found, "system", "auth.scope").get("all") is not True:
            raise Invalid("auth.scope.system.all must be true.")
        return "system", Named(id=SYSTEM)
    if "unscoped" in found:
        return "none", Named()
    raise Invalid("auth.scope must have exactly one of project, domain, system and unscoped.")


def _domain(tx: Tx, named: Named) -> Domain | None:
    if named.domain_id is not None:
        return find(tx, Domain, named.domain_id)
    return find_named(tx, Domain, named.domain_name) if named.domain_name is not None else None


def _user(tx: Tx, named: Named) -> User | None:
    if named.id is not None:
        return find(tx, User, named.id)
    domain = _domain(tx, named)
    return find_named(tx, User, named.name or "", domain.id) if domain is not None else None


def _target_id(tx: Tx, scope: str, named: Named) -> str | None:
    """The id of what the token shall be for; None if there is no such thing."""
    if named.id is not None:
        return named.id
    if scope == "domain":
        domain = find_named(tx, Domain, named.name or "")
        return None if domain is None else domain.id
    home = _domain(tx, named)
    project = find_named(tx, Project, named.name or "", home.id) if home is not None else None
    return None if project is None else project.id


def stand(tx: Tx, user: User, login: Login) -> Standing | None:
    """Where the user stands in the scope that was asked for; None for no access."""
    if login.scope == "none":
        return identity_tokens.standing(tx, user.id, "none", "")
    if login.scope is not None:
        target = _target_id(tx, login.scope, login.target)
        return None if target is None else identity_tokens.standing(tx, user.id, login.scope, target)
    if user.default_project_id is not None:
        found = identity_tokens.standing(tx, user.id, "project", user.default_project_id)
        if found is not None:
            return found
    return identity_tokens.standing(tx, user.id, "none", "")


async def log_in(identity: BuiltinIdentity, login: Login) -> tuple[str, Token]:
    """A new token and what it is worth.  Raises Unauthenticated."""
    user: User | None = None
    parent: Payload | None = None
    if login.user is not None:
        named = login.user
        user = await identity.db.read(lambda tx: _user(tx, named))
        right = await identity.passwords.verify(user.password_hash if user else None, login.password)
        if user is None or not right:
            raise Unauthenticated(tokens.NOT_VALID)
    if "token" in login.methods:
        parent, bearer = await _bearer(identity, login.token)
        if user is not None and user.id != bearer.id:
            raise Unauthenticated(tokens.NOT_VALID)
        user = bearer
    assert user is not None, "there is at least one method"
    known = user
    standing = await identity.db.read(lambda tx: stand(tx, known, login))
    if standing is None or standing.user.generation != known.generation:
        raise Unauthenticated(tokens.NOT_VALID)
    return identity.issue(standing, login.methods, parent)


async def _bearer(identity: BuiltinIdentity, text: str) -> tuple[Payload, User]:
    token = await identity.inspect(text)
    return token.payload, token.standing.user


def own_projects(tx: Tx, user_id: str) -> list[Project]:
    """The enabled projects that a user has a role on, by name."""
    found = [find(tx, Project, each) for each in identity_roles.targets(tx, user_id, "project")]
    return sorted((each for each in found if each is not None and each.enabled), key=lambda each: each.name)
