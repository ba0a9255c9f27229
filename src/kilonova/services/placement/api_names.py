"""Traits and resource classes."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from kilonova.db import placement_names as names
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.services.placement import known, standard
from kilonova.services.placement.call import At, BadQuery, Call, Routes, no_content

IDEMPOTENT = 7


class ClassName(msgspec.Struct, forbid_unknown_fields=True):
    name: str


def _custom(kind: str, name: str) -> str:
    """Raises Invalid for a name that nobody may give."""
    if not standard.is_custom(name):
        raise Invalid(
            f"The {kind} is invalid: {name}. It must begin with CUSTOM_ and have only A to Z, 0 to 9 and _."
        )
    return name


async def traits(call: Call) -> Response:
    call.need_admin()
    wanted = call.queries("name", "associated")
    text = wanted.get("name", [""])[0]
    way, _, value = text.partition(":")
    if text and way not in ("in", "startswith"):
        raise BadQuery("Badly formatted name parameter: use in:NAME,NAME or startswith:PREFIX.")
    associated = wanted.get("associated", [""])[0].lower()
    if associated not in ("", "true", "false"):
        raise BadQuery("The query parameter associated must be true or false.")

    def look(tx: Tx) -> list[str]:
        found = known.traits(tx)
        if associated:
            used = names.traits.used(tx)
            found = [name for name in found if (name in used) is (associated == "true")]
        if way == "in":
            return [name for name in found if name in value.split(",")]
        return [name for name in found if name.startswith(value)]

    return call.answer({"traits": await call.db.read(look)})


async def put_trait(call: Call) -> Response:
    call.need_admin()
    name = _custom("trait", call.part("name"))
    made = await call.db.write(lambda tx: names.traits.add(tx, name))
    return call.dated(call.located(f"/traits/{name}", 201 if made else 204))


async def show_trait(call: Call) -> Response:
    call.need_admin()
    if not await call.db.read(lambda tx: known.trait(tx, call.part("name"))):
        raise NotFound(f"No such trait(s): {call.part('name')}.")
    return call.dated(no_content())


async def delete_trait(call: Call) -> Response:
    call.need_admin()
    await call.db.write(lambda tx: _drop(tx, names.traits, "trait", call.part("name")))
    return no_content()


def _drop(tx: Tx, shelf: names.Names, kind: str, name: str) -> None:
    found = known.trait(tx, name) if kind == "trait" else known.resource_class(tx, name)
    if not found:
        raise NotFound(f"No such {kind}: {name}.")
    if not standard.is_custom(name):
        raise Invalid(f"Cannot delete standard {kind} {name}.")
    shelf.drop(tx, name)  # whoever is about to use it has it locked until then
    if shelf.in_use(tx, name):
        raise Conflict(f"The {kind} {name} is in use by a resource provider.")


def _class_view(name: str) -> dict[str, Any]:
    return {"name": name, "links": [{"rel": "self", "href": f"/resource_classes/{name}"}]}


async def classes(call: Call) -> Response:
    call.need_admin()
    found = await call.db.read(known.resource_classes)
    return call.answer({"resource_classes": [_class_view(name) for name in found]})


async def post_class(call: Call) -> Response:
    call.need_admin()
    name = _custom("resource class", (await call.read(ClassName)).name)
    if not await call.db.write(lambda tx: names.resource_classes.add(tx, name)):
        raise Conflict(f"Conflicting resource class already exists: {name}.")
    return call.located(f"/resource_classes/{name}")


async def show_class(call: Call) -> Response:
    call.need_admin()
    name = call.part("name")
    if not await call.db.read(lambda tx: known.resource_class(tx, name)):
        raise NotFound(f"No such resource class: {name}.")
    return call.answer(_class_view(name))


async def put_class(call: Call) -> Response:
    """Before 1.7 it renames, since then it makes sure that there is one."""
    call.need_admin()
    name = call.part("name")
    if call.version < IDEMPOTENT:
        new = _custom("resource class", (await call.read(ClassName)).name)
        await call.db.write(lambda tx: _rename(tx, name, new))
        return call.answer(_class_view(new))
    _custom("resource class", name)
    if await call.db.write(lambda tx: names.resource_classes.add(tx, name)):
        return call.located(f"/resource_classes/{name}")
    return no_content()


def _rename(tx: Tx, name: str, new: str) -> None:
    if not known.resource_class(tx, name):
        raise NotFound(f"No such resource class: {name}.")
    if not standard.is_custom(name):
        raise Invalid(f"Cannot update standard resource class {name}.")
    if known.resource_class(tx, new):
        raise Conflict(f"Resource class already exists: {new}.")
    names.rename_class(tx, name, new)


async def delete_class(call: Call) -> Response:
    call.need_admin()
    name = call.part("name")
    await call.db.write(lambda tx: _drop(tx, names.resource_classes, "resource class", name))
    return no_content()


ROUTES: Routes = {
    "/traits": {"GET": At(traits, 6)},
    "/traits/{name}": {"GET": At(show_trait, 6), "PUT": At(put_trait, 6), "DELETE": At(delete_trait, 6)},
    "/resource_classes": {"GET": At(classes, 2), "POST": At(post_class, 2)},
    "/resource_classes/{name}": {
        "GET": At(show_class, 2),
        "PUT": At(put_class, 2),
        "DELETE": At(delete_class, 2),
    },
}
