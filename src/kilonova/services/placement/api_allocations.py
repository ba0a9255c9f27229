"""Who holds what: allocations by consumer, and usages of a project."""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from kilonova.db import placement
from kilonova.db import placement_allocations as allocations
from kilonova.db import placement_providers as providers
from kilonova.db.engine import Tx
from kilonova.db.placement_allocations import Consumer, Put
from kilonova.errors import Forbidden, Invalid, NotFound
from kilonova.services.placement import known
from kilonova.services.placement.call import At, BadQuery, Call, Routes, convert, no_content, read_uuid

OWNERS, OBJECTS, GENERATIONS, MAPPINGS, TYPES = 8, 12, 28, 34, 38
UNKNOWN = "unknown"
LONGEST = 255  # characters of a name or an id of others
_SUFFIX = re.compile(r"[a-zA-Z0-9_-]{0,64}\Z")
_TYPE = re.compile(r"[A-Z0-9_]{1,255}\Z")

Amounts = dict[str, Annotated[int, Meta(ge=1, le=2**31 - 1)]]
Mappings = Annotated[dict[str, Annotated[list[str], Meta(min_length=1)]], Meta(min_length=1)]
Owner = Annotated[str, Meta(min_length=1, max_length=255)]


class Of(msgspec.Struct, forbid_unknown_fields=True):
    uuid: str


class Listed(msgspec.Struct, forbid_unknown_fields=True):
    resource_provider: Of
    resources: Amounts


class Keyed(msgspec.Struct, forbid_unknown_fields=True):
    resources: Amounts
    generation: int | UnsetType = UNSET  # clients send back what they got


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of all microversions; which of it may or must be there is said by ``_read``."""

    allocations: list[Listed] | dict[str, Keyed]
    project_id: Owner | UnsetType = UNSET
    user_id: Owner | UnsetType = UNSET
    consumer_generation: int | UnsetType | None = UNSET
    mappings: Mappings | UnsetType = UNSET
    consumer_type: str | UnsetType = UNSET


def _read(call: Call, consumer: str, body: Body, *, may_be_empty: bool) -> Put:
    """Raises Invalid for what this microversion does not allow."""
    uuid = read_uuid(consumer)
    if uuid is None:
        raise Invalid(f"Malformed consumer_uuid: {consumer}.")
    for name, since, needed in (
        ("project_id", OWNERS, True),
        ("user_id", OWNERS, True),
        ("consumer_generation", GENERATIONS, True),
        ("mappings", MAPPINGS, False),
        ("consumer_type", TYPES, True),
    ):
        there = getattr(body, name) is not UNSET
        if there and call.version < since:
            raise Invalid(f"JSON does not validate: '{name}' is not known at 1.{call.version}.")
        if needed and not there and call.version >= since:
            raise Invalid(f"JSON does not validate: '{name}' is a required property.")
    kind = None if body.consumer_type is UNSET else body.consumer_type
    if kind is not None and not _TYPE.match(kind):
        raise Invalid("JSON does not validate: 'consumer_type' must be of A to Z, 0 to 9 and _.")
    if body.mappings is not UNSET:
        _check_mappings(body.mappings)
    resources = _resources(call, body)
    if not resources and not may_be_empty:
        raise Invalid("JSON does not validate: 'allocations' must not be empty.")
    owner = Consumer(
        uuid=uuid,
        generation=0,
        project_id=call.placement.options.nobodys_project if body.project_id is UNSET else body.project_id,
        user_id=call.placement.options.nobodys_user if body.user_id is UNSET else body.user_id,
        consumer_type=kind,
    )
    known_generation = body.consumer_generation if call.version >= GENERATIONS else allocations.ANY
    return Put(owner, resources, known_generation)


def _check_mappings(found: dict[str, list[str]]) -> None:
    """Which group of a request is served by whom is not kept, but must be what candidates say."""
    for suffix, uuids in found.items():
        if not _SUFFIX.match(suffix) or not all(read_uuid(text) for text in uuids):
            raise Invalid(f"JSON does not validate: the mappings of '{suffix:.99}' are no list of uuids.")


def _resources(call: Call, body: Body) -> placement.Held:
    if isinstance(body.allocations, dict) != (call.version >= OBJECTS):
        kind = "an object" if call.version >= OBJECTS else "a list"
        raise Invalid(f"JSON does not validate: 'allocations' must be {kind}.")
    if isinstance(body.allocations, dict):
        pairs = [(of, each.resources) for of, each in body.allocations.items()]
    else:
        pairs = [(each.resource_provider.uuid, each.resources) for each in body.allocations]
    found: placement.Held = {}
    for text, resources in pairs:
        of = read_uuid(text)
        if of is None or of in found:
            raise Invalid(f"JSON does not validate: {text} is no uuid of a provider, or stands twice.")
        if not resources:
            raise Invalid(f"JSON does not validate: the resources of {of} must not be empty.")
        found[of] = resources
    return found


def read_puts(call: Call, found: dict[str, Any]) -> list[Put]:
    """Consumer -> body.  Raises Invalid."""
    wanted = [
        _read(call, consumer, convert(found[consumer], Body), may_be_empty=True) for consumer in sorted(found)
    ]
    if len({each.consumer.uuid for each in wanted}) != len(wanted):
        raise Invalid("JSON does not validate: a consumer stands twice.")
    return wanted


def check_classes(tx: Tx, wanted: list[Put]) -> None:
    """Raises Invalid for a resource class that is not known."""
    names = {name for each in wanted for resources in each.resources.values() for name in resources}
    for name in sorted(names):
        if not known.resource_class(tx, name):
            raise Invalid(f"Unable to allocate inventory: No such resource class {name}.")


def _put(tx: Tx, wanted: list[Put]) -> None:
    check_classes(tx, wanted)
    try:
        allocations.put(tx, wanted)
    except allocations.NoSuchProvider as error:
        raise Invalid(f"Unable to allocate inventory: {error}") from error


async def show(call: Call) -> Response:
    call.need_admin()
    consumer = _consumer(call)

    def look(tx: Tx) -> dict[str, Any]:
        found = allocations.consumer(tx, consumer)
        if found is None:
            return {"allocations": {}}
        held = {
            of: {"generation": providers.show(tx, of).generation, "resources": resources}
            for of, resources in placement.held(tx, consumer).items()
        }
        view: dict[str, Any] = {"allocations": held}
        if call.version >= OBJECTS:
            view |= {"project_id": found.project_id, "user_id": found.user_id}
        if call.version >= GENERATIONS:
            view["consumer_generation"] = found.generation
        if call.version >= TYPES:
            view["consumer_type"] = found.consumer_type or UNKNOWN
        return view

    return call.answer(await call.db.read(look))


async def put(call: Call) -> Response:
    call.need_admin()
    body = await call.read(Body)
    wanted = _read(call, call.part("consumer"), body, may_be_empty=call.version >= GENERATIONS)
    await call.db.write(lambda tx: _put(tx, [wanted]))
    return no_content()


async def post(call: Call) -> Response:
    """Several consumers at once, all or none."""
    call.need_admin()
    found = await call.large_body()
    if not found:
        raise Invalid("JSON does not validate: at least one consumer is needed.")
    wanted = read_puts(call, found)
    await call.db.write(lambda tx: _put(tx, wanted))
    return no_content()


def _consumer(call: Call) -> str:
    """The consumer in the path, in the spelling of the database; what is no uuid holds nothing."""
    return read_uuid(call.part("consumer")) or call.part("consumer")


async def delete(call: Call) -> Response:
    call.need_admin()
    consumer = _consumer(call)
    if not await call.db.write(lambda tx: placement.release(tx, consumer)):
        raise NotFound(f"No allocations for consumer '{consumer}'.")
    return no_content()


async def usages(call: Call) -> Response:
    names = ("project_id", "user_id", "consumer_type")[: 3 if call.version >= TYPES else 2]
    wanted = {name: values[0] for name, values in call.queries(*names).items()}
    project = wanted.get("project_id")
    if not project:
        raise BadQuery("Invalid query string parameters: 'project_id' is a required property.")
    for name, value in wanted.items():
        if not 1 <= len(value) <= LONGEST:
            raise BadQuery(f"Invalid query string parameters: '{name}' must have 1 to {LONGEST} characters.")
    own = call.context.project_id == project and "reader" in call.context.roles
    if not own and not call.context.is_admin:
        raise Forbidden("Policy does not allow this request to be performed: it is another project.")
    found, counts = await call.db.read(lambda tx: allocations.usages(tx, project, wanted.get("user_id")))
    if call.version >= TYPES:
        return call.answer({"usages": _by_type(found, counts, wanted.get("consumer_type"))})
    totals: dict[str, int] = {}
    for each in found:
        totals[each.resource_class] = totals.get(each.resource_class, 0) + each.used
    return call.answer({"usages": totals})


def _by_type(
    found: list[allocations.Usage], counts: dict[str | None, int], wanted: str | None
) -> dict[str, dict[str, int]]:
    result: dict[str, dict[str, int]] = {}
    for kind, count in counts.items():
        name = "all" if wanted == "all" else kind or UNKNOWN
        if wanted in (None, "all", name):
            group = result.setdefault(name, {"consumer_count": 0})
            group["consumer_count"] += count
    for each in found:
        name = "all" if wanted == "all" else each.consumer_type or UNKNOWN
        if name in result:
            result[name][each.resource_class] = result[name].get(each.resource_class, 0) + each.used
    return result


ROUTES: Routes = {
    "/allocations": {"POST": At(post, 13)},
    "/allocations/{consumer}": {"GET": At(show), "PUT": At(put), "DELETE": At(delete)},
    "/usages": {"GET": At(usages, 9)},
}
