"""Resource providers, their aggregates and their traits."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from kilonova.db import placement_providers as providers
from kilonova.db.engine import Tx
from kilonova.db.placement_providers import Provider
from kilonova.errors import Invalid
from kilonova.services.placement import known, queries
from kilonova.services.placement.call import GENERATION, At, Call, Routes, convert, no_content, read_uuid
from kilonova.services.placement.candidates.wanted import Demand, Group

NESTED, WITH_BODY, REPARENT, AGGREGATE_GENERATIONS = 14, 20, 37, 19
FILTERS = {
    "name": 0,
    "uuid": 0,
    "member_of": 3,
    "resources": 4,
    "in_tree": NESTED,
    "required": 18,
}
LINKS = (
    ("self", 0),
    ("inventories", 0),
    ("usages", 0),
    ("aggregates", 1),
    ("traits", 6),
    ("allocations", 11),
)

Name = Annotated[str, Meta(min_length=1, max_length=200)]


class Plain(msgspec.Struct, forbid_unknown_fields=True):
    name: Name
    uuid: str | UnsetType = UNSET


class Nested(Plain, forbid_unknown_fields=True):
    parent_provider_uuid: str | UnsetType | None = UNSET


class Aggregates(msgspec.Struct, forbid_unknown_fields=True):
    aggregates: list[str]
    resource_provider_generation: int


class Traits(msgspec.Struct, forbid_unknown_fields=True):
    traits: list[str]
    resource_provider_generation: int


def view(call: Call, found: Provider) -> dict[str, Any]:
    href = f"/resource_providers/{found.uuid}"
    result: dict[str, Any] = {
        "uuid": found.uuid,
        "name": found.name,
        "generation": found.generation,
        "links": [
            {"rel": name, "href": href if name == "self" else f"{href}/{name}"}
            for name, since in LINKS
            if call.version >= since
        ],
    }
    if call.version >= NESTED:
        result |= {"parent_provider_uuid": found.parent, "root_provider_uuid": found.root}
    return result


async def index(call: Call) -> Response:
    """Providers by name, of which all filters hold."""
    call.need_admin()
    names = [name for name, since in FILTERS.items() if call.version >= since]
    several = tuple(name for name in ("member_of", "required") if name in names)
    wanted = call.queries(*names, several=several)
    uuids = [queries.one_uuid("uuid", text) for text in wanted.get("uuid", [])]
    group = _group(wanted, call.version)
    asked = Demand(group=group, suffixes=(), resources=group.resources)
    all_of, _ = await call.views.look(lambda tx: queries.check_names(tx, [group]))
    found = [
        node.found.provider
        for node in all_of.by_name
        if wanted.get("name", [node.found.provider.name]) == [node.found.provider.name]
        and (not uuids or node.uuid in uuids)
        and asked.served_by(node, all_of.nodes)
    ]
    return call.answer({"resource_providers": [view(call, each) for each in found]})


def _group(wanted: dict[str, list[str]], version: int) -> Group:
    required = wanted.get("required", [])
    if version < queries.ANY_TRAITS:
        required = required[-1:]  # as Placement, which took the last of several
    traits = queries.traits("required", required, version)
    member_of, not_member_of = queries.member_of("member_of", wanted.get("member_of", []), version)
    return Group(
        resources=queries.resources(wanted["resources"][0]) if "resources" in wanted else (),
        required=traits.required,
        forbidden=traits.forbidden,
        any_of=traits.any_of,
        member_of=member_of,
        not_member_of=not_member_of,
        in_tree=queries.one_uuid("in_tree", wanted["in_tree"][0]) if "in_tree" in wanted else None,
    )


async def create(call: Call) -> Response:
    call.need_admin()
    body = await call.read(Nested if call.version >= NESTED else Plain)
    wanted = str(uuid.uuid4()) if body.uuid is UNSET else _uuid("uuid", body.uuid)
    parent = _parent(body)
    made = await call.db.write(lambda tx: providers.create(tx, wanted, body.name, parent or None))
    if call.version < WITH_BODY:
        return call.located(f"/resource_providers/{wanted}")
    response = call.answer(view(call, made))
    response.headers["location"] = call.absolute(f"/resource_providers/{wanted}")
    return response


def _uuid(name: str, text: str) -> str:
    found = read_uuid(text)
    if found is None:
        raise Invalid(f"JSON does not validate: '{name}' must be a uuid.")
    return found


def _parent(body: Plain) -> str | UnsetType | None:
    found = body.parent_provider_uuid if isinstance(body, Nested) else UNSET
    return _uuid("parent_provider_uuid", found) if isinstance(found, str) else found


async def show(call: Call) -> Response:
    call.need_admin()
    found, _ = await call.on_provider(lambda tx, of: None)
    return call.answer(view(call, found))


async def update(call: Call) -> Response:
    call.need_admin()
    body = await call.read(Nested if call.version >= NESTED else Plain)
    if body.uuid is not UNSET:
        raise Invalid("JSON does not validate: the uuid of a provider cannot be changed.")
    of, parent = call.uuid(), _parent(body)

    def change(tx: Tx) -> Provider:
        above = providers.show(tx, of).parent if parent is UNSET else parent
        return providers.change(tx, of, body.name, above, reparent=call.version >= REPARENT)

    return call.answer(view(call, await call.db.write(change)))


async def delete(call: Call) -> Response:
    call.need_admin()
    of = call.uuid()
    await call.db.write(lambda tx: providers.remove(tx, of))
    return no_content()


def _aggregates(call: Call, found: Provider, names: set[str]) -> Response:
    result: dict[str, Any] = {"aggregates": sorted(names)}
    if call.version >= AGGREGATE_GENERATIONS:
        result[GENERATION] = found.generation
    return call.answer(result)


async def show_aggregates(call: Call) -> Response:
    call.need_admin()
    return _aggregates(call, *await call.on_provider(providers.aggregates_of.of))


async def put_aggregates(call: Call) -> Response:
    call.need_admin()
    of = call.uuid()
    generation: int | None = None
    if call.version >= AGGREGATE_GENERATIONS:
        body = await call.read(Aggregates)
        names, generation = body.aggregates, body.resource_provider_generation
    else:
        names = convert_list(await call.raw_body())
    wanted = {_uuid("aggregates", name) for name in names}
    if len(wanted) != len(names):
        raise Invalid("JSON does not validate: an aggregate stands twice.")

    def change(tx: Tx) -> Provider:
        found = providers.lock(tx, of, generation)
        providers.aggregates_of.replace(tx, of, wanted)
        if generation is None:
            providers.touch(tx, of)
            return found
        return providers.bump(tx, found)

    return _aggregates(call, await call.db.write(change), wanted)


def convert_list(body: bytes) -> list[str]:
    """A body that is a list of texts.  Raises Invalid."""
    try:
        return msgspec.json.decode(body, type=list[str])
    except msgspec.DecodeError as error:
        raise Invalid(f"JSON does not validate: {error}.") from error


def _traits(call: Call, found: Provider, names: set[str]) -> Response:
    return call.answer({"traits": sorted(names), GENERATION: found.generation})


async def show_traits(call: Call) -> Response:
    call.need_admin()
    return _traits(call, *await call.on_provider(providers.traits_of.of))


async def put_traits(call: Call) -> Response:
    call.need_admin()
    body = convert(await call.body(), Traits)
    wanted, of = set(body.traits), call.uuid()

    def change(tx: Tx) -> None:
        unknown = [name for name in sorted(wanted) if not known.hold_trait(tx, name)]
        if unknown:
            raise Invalid(f"No such trait(s): {', '.join(unknown)}.")
        providers.traits_of.replace(tx, of, wanted)

    found, _ = await call.db.write(providers.changed(of, body.resource_provider_generation, change))
    return _traits(call, found, wanted)


async def delete_traits(call: Call) -> Response:
    call.need_admin()
    of = call.uuid()
    await call.db.write(providers.changed(of, None, lambda tx: providers.traits_of.replace(tx, of, ())))
    return no_content()


ROUTES: Routes = {
    "/resource_providers": {"GET": At(index), "POST": At(create)},
    "/resource_providers/{uuid}": {"GET": At(show), "PUT": At(update), "DELETE": At(delete)},
    "/resource_providers/{uuid}/aggregates": {"GET": At(show_aggregates, 1), "PUT": At(put_aggregates, 1)},
    "/resource_providers/{uuid}/traits": {
        "GET": At(show_traits, 6),
        "PUT": At(put_traits, 6),
        "DELETE": At(delete_traits, 6),
    },
}
