"""Giving roles to users and groups on projects, domains and the system, and listing who has which."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from kilonova.db import identity_records as records
from kilonova.db import identity_roles
from kilonova.db.engine import Tx
from kilonova.db.identity_records import Domain, Group, Project, Role, User
from kilonova.db.identity_roles import SYSTEM, Assignment
from kilonova.errors import Invalid, NotFound
from kilonova.services.identity import views
from kilonova.services.identity.call import Call, Handler, Routes, no_content

View = dict[str, Any]

_KINDS: dict[str, Any] = {"project": Project, "domain": Domain, "user": User, "group": Group, "role": Role}


class _Grant:
    """The five calls on one kind of target and one kind of actor."""

    def __init__(self, target: str, actor: str) -> None:
        self.target = target
        self.actor = actor
        where = "system" if target == "system" else f"{target}s/{{target_id}}"
        self.path = f"/v3/{where}/{actor}s/{{actor_id}}/roles"

    def routes(self) -> Routes:
        one: dict[str, Handler] = {"PUT": self.put, "GET": self.check, "DELETE": self.delete}
        return {self.path: {"GET": self.index}, self.path + "/{role_id}": one}

    def _place(self, tx: Tx, call: Call) -> dict[str, str]:
        """Who and where.  Raises NotFound for what is not there."""
        actor = records.show(tx, _KINDS[self.actor], call.part("actor_id"))
        target = SYSTEM
        if self.target != "system":
            target = records.show(tx, _KINDS[self.target], call.part("target_id")).id
        return {
            "actor_type": self.actor,
            "actor_id": actor.id,
            "target_type": self.target,
            "target_id": target,
        }

    def _whole(self, tx: Tx, call: Call) -> Assignment:
        role = records.show(tx, Role, call.part("role_id"))
        return Assignment(**self._place(tx, call), role_id=role.id)

    async def index(self, call: Call) -> Response:
        call.need_reader("identity:list_grants")

        def look(tx: Tx) -> list[Role]:
            given = identity_roles.list_assignments(tx, **self._place(tx, call))
            return [records.show(tx, Role, each.role_id) for each in given]

        found = await call.identity.db.read(look)
        return call.listing("roles", (views.role(call, each) for each in found))

    async def put(self, call: Call) -> Response:
        call.need_admin("identity:create_grant")
        await call.identity.change(lambda tx: identity_roles.assign(tx, self._whole(tx, call)))
        return no_content()

    async def check(self, call: Call) -> Response:
        call.need_reader("identity:check_grant")
        if not await call.identity.db.read(lambda tx: identity_roles.is_assigned(tx, self._whole(tx, call))):
            raise self._none(call)
        return no_content()

    async def delete(self, call: Call) -> Response:
        call.need_admin("identity:revoke_grant")
        if not await call.identity.change(lambda tx: identity_roles.unassign(tx, self._whole(tx, call))):
            raise self._none(call)
        return no_content()

    def _none(self, call: Call) -> NotFound:
        return NotFound(
            f"Could not find role assignment with role: {call.part('role_id')}, {self.actor}: "
            f"{call.part('actor_id')}, {self.target}: {call.request.path_params.get('target_id', SYSTEM)}."
        )


class _Wanted(msgspec.Struct, frozen=True):
    """What a list of assignments was asked for: field of an assignment -> value."""

    equal: dict[str, str]
    effective: bool
    subtree: bool


def _read_wanted(call: Call) -> _Wanted:
    equal: dict[str, str] = {}
    for name, kind in (("user.id", "user"), ("group.id", "group")):
        value = call.query(name)
        if value is not None:
            if "actor_id" in equal:
                raise Invalid("Specify a user or a group, not both.")
            equal |= {"actor_type": kind, "actor_id": value}
    system = call.query("scope.system")
    targets = {
        "project": call.query("scope.project.id"),
        "domain": call.query("scope.domain.id"),
        "system": SYSTEM if system is not None and call.flag("scope.system") else None,
    }
    for kind, value in targets.items():
        if value is not None:
            if "target_id" in equal:
                raise Invalid("Specify a domain, a project or the system, not several of them.")
            equal |= {"target_type": kind, "target_id": value}
    role = call.query("role.id")
    if role is not None:
        equal["role_id"] = role
    effective = call.flag("effective")
    if effective and equal.get("actor_type") == "group":
        raise Invalid("Combining effective and group filter will always result in an empty list.")
    subtree = call.flag("include_subtree")
    if subtree and equal.get("target_type") != "project":
        raise Invalid("scope.project.id must be specified if include_subtree is also specified.")
    return _Wanted(equal, effective, subtree)


async def list_all(call: Call) -> Response:
    wanted = _read_wanted(call)
    own = wanted.equal.get("actor_type") == "user" and wanted.equal["actor_id"] == call.context.user_id
    call.need_reader("identity:list_role_assignments", own=own)
    names = call.flag("include_names")

    def look(tx: Tx) -> list[View]:
        found = _effective(tx, wanted) if wanted.effective else _direct(tx, wanted)
        namer = _Namer(tx) if names else None
        return [_view(call, each, namer) for each in found]

    return call.listing("role_assignments", await call.identity.db.read(look))


def _listed(tx: Tx, wanted: _Wanted, equal: dict[str, str]) -> list[Assignment]:
    """The assignments whose fields are as given; with those on projects below the one, if so wanted."""
    if not wanted.subtree:
        return identity_roles.list_assignments(tx, **equal)
    projects = _subtree(tx, equal["target_id"])
    elsewhere = {name: value for name, value in equal.items() if name != "target_id"}
    return [each for each in identity_roles.list_assignments(tx, **elsewhere) if each.target_id in projects]


def _subtree(tx: Tx, project_id: str) -> set[str]:
    found, waiting = {project_id}, [project_id]
    while waiting:
        below = {each.id for each in records.select_all(tx, Project, {"parent_id": waiting.pop()})} - found
        found |= below
        waiting.extend(below)
    return found


def _direct(tx: Tx, wanted: _Wanted) -> list[Assignment]:
    return _listed(tx, wanted, wanted.equal)


def _effective(tx: Tx, wanted: _Wanted) -> list[Assignment]:
    """Groups taken apart into users, implied roles added."""
    target = {name: value for name, value in wanted.equal.items() if name.startswith("target_")}
    implied = identity_roles.implied(tx)
    members: dict[str, list[str]] = {}
    found: set[Assignment] = set()
    for each in _listed(tx, wanted, target):
        users = [each.actor_id]
        if each.actor_type == "group":
            if each.actor_id not in members:
                members[each.actor_id] = [user.id for user in identity_roles.members(tx, each.actor_id)]
            users = members[each.actor_id]
        for role in identity_roles.closure(implied, {each.role_id}):
            found |= {
                msgspec.structs.replace(each, actor_type="user", actor_id=user, role_id=role)
                for user in users
            }
    keys = {name: value for name, value in wanted.equal.items() if name in ("actor_id", "role_id")}
    return sorted(each for each in found if all(getattr(each, name) == value for name, value in keys.items()))


class _Namer:
    """Names of what assignments speak of, each read once."""

    def __init__(self, tx: Tx) -> None:
        self._tx = tx
        self._found: dict[tuple[str, str], View] = {}

    def show(self, kind: str, id: str) -> View:
        found = self._found.get((kind, id))
        if found is None:
            found = self._found[kind, id] = self._read(kind, id)
        return found

    def _read(self, kind: str, id: str) -> View:
        record = records.find(self._tx, _KINDS[kind], id)
        view: View = {"id": id, "name": "" if record is None else record.name}
        home = getattr(record, "domain_id", None)
        if home is not None:
            view["domain"] = self.show("domain", home)
        return view


def _view(call: Call, found: Assignment, namer: _Namer | None) -> View:
    def shown(kind: str, id: str) -> View:
        return {"id": id} if namer is None else namer.show(kind, id)

    scope: View = {"system": {"all": True}}
    where = "system"
    if found.target_type != "system":
        scope = {found.target_type: shown(found.target_type, found.target_id)}
        where = f"{found.target_type}s/{found.target_id}"
    path = f"{where}/{found.actor_type}s/{found.actor_id}/roles/{found.role_id}"
    return {
        "role": shown("role", found.role_id),
        found.actor_type: shown(found.actor_type, found.actor_id),
        "scope": scope,
        "links": {"assignment": f"{call.url}/v3/{path}"},
    }


ROUTES: Routes = {"/v3/role_assignments": {"GET": list_all}}
for _target in ("project", "domain", "system"):
    for _actor in ("user", "group"):
        ROUTES |= _Grant(_target, _actor).routes()
