"""What a provider has, and what of it is used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.responses import Response

from kilonova.db import placement_allocations
from kilonova.db import placement_providers as providers
from kilonova.db.engine import Tx
from kilonova.db.placement_providers import Provider, Stock
from kilonova.errors import Conflict, Invalid, NotFound
from kilonova.model.host import Inventory
from kilonova.services.placement import known
from kilonova.services.placement.call import GENERATION, At, Call, Routes, no_content

LARGEST = 2**31 - 1
ALL_RESERVED, CONSUMER_GENERATIONS = 26, 28

Amount = Annotated[int, Meta(ge=1, le=LARGEST)]


class Fields(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    total: Amount
    reserved: Annotated[int, Meta(ge=0, le=LARGEST)] = 0
    min_unit: Amount = 1
    max_unit: Amount = LARGEST
    step_size: Amount = 1
    allocation_ratio: Annotated[float, Meta(ge=0, le=3.40282e38)] = 1.0


class WithGeneration(Fields, forbid_unknown_fields=True, kw_only=True):
    resource_provider_generation: int


class Record(Fields, forbid_unknown_fields=True, kw_only=True):
    """One of several; the generation in it means nothing, but is allowed."""

    resource_provider_generation: int | None = None


class Posted(Record, forbid_unknown_fields=True, kw_only=True):
    """Here the generation is optional, unlike everywhere else."""

    resource_class: str


class Whole(msgspec.Struct, forbid_unknown_fields=True):
    resource_provider_generation: int
    inventories: dict[str, Record]


def inventory_of(call: Call, name: str, of: str, body: Fields) -> Inventory:
    """Raises Invalid when all (or, before 1.26, nothing) would be left."""
    if body.reserved > body.total or (body.reserved == body.total and call.version < ALL_RESERVED):
        raise Invalid(f"Invalid inventory for '{name}' on resource provider '{of}': too much is reserved.")
    return Inventory(**{field: getattr(body, field) for field in Inventory.__struct_fields__})


def _view(inventory: Inventory) -> dict[str, Any]:
    return msgspec.structs.asdict(inventory)


def _all(call: Call, found: Provider, stock: dict[str, Inventory]) -> Response:
    inventories = {name: _view(stock[name]) for name in sorted(stock)}
    return call.answer({GENERATION: found.generation, "inventories": inventories})


def _one(call: Call, found: Provider, inventory: Inventory, status: int = 200) -> Response:
    return call.answer({GENERATION: found.generation, **_view(inventory)}, status)


def hold_classes(tx: Tx, names: Iterable[str]) -> None:
    """Have all these resource classes stay until the transaction ends.  Raises Invalid for an unknown one."""
    for name in sorted(names):
        if not known.hold_class(tx, name):
            raise Invalid(f"Unknown resource class in inventory: No such resource class {name}.")


async def show_all(call: Call) -> Response:
    call.need_admin()
    found, stock = await call.on_provider(providers.stock)
    return _all(call, found, {name: each.inventory for name, each in stock.items()})


async def put_all(call: Call) -> Response:
    call.need_admin()
    of, body = call.uuid(), await call.read(Whole)
    wanted = {name: inventory_of(call, name, of, each) for name, each in body.inventories.items()}

    def change(tx: Tx) -> None:
        hold_classes(tx, wanted)
        providers.set_stock(tx, of, wanted)

    found, _ = await call.db.write(providers.changed(of, body.resource_provider_generation, change))
    return _all(call, found, wanted)


async def delete_all(call: Call) -> Response:
    call.need_admin()
    of = call.uuid()
    await call.db.write(providers.changed(of, None, lambda tx: providers.set_stock(tx, of, {})))
    return no_content()


async def post_one(call: Call) -> Response:
    call.need_admin()
    of, body = call.uuid(), await call.read(Posted)
    made = inventory_of(call, body.resource_class, of, body)

    def change(tx: Tx) -> None:
        hold_classes(tx, [body.resource_class])
        if body.resource_class in providers.stock(tx, of):
            raise Conflict(f"Provider {of} already has an inventory of {body.resource_class}.")
        _set_one(tx, of, body.resource_class, made)

    found, _ = await call.db.write(providers.changed(of, body.resource_provider_generation, change))
    response = _one(call, found, made, 201)
    path = f"/resource_providers/{of}/inventories/{body.resource_class}"
    response.headers["location"] = call.absolute(path)
    return response


def _set_one(tx: Tx, of: str, name: str, inventory: Inventory | None) -> None:
    """Put one inventory of a locked provider, or take it away."""
    wanted = {key: each.inventory for key, each in providers.stock(tx, of).items() if key != name}
    if inventory is not None:
        wanted[name] = inventory
    providers.set_stock(tx, of, wanted)


def _its(stock: dict[str, Stock], of: str, name: str) -> Stock:
    if name not in stock:
        raise NotFound(f"No inventory of class {name} for {of}.")
    return stock[name]


async def show_one(call: Call) -> Response:
    call.need_admin()
    found, stock = await call.on_provider(
        lambda tx, of: _its(providers.stock(tx, of), of, call.part("resource_class"))
    )
    return _one(call, found, stock.inventory)


async def put_one(call: Call) -> Response:
    call.need_admin()
    of, name, body = call.uuid(), call.part("resource_class"), await call.read(WithGeneration)
    wanted = inventory_of(call, name, of, body)

    def change(tx: Tx) -> None:
        if name not in providers.stock(tx, of):
            raise Invalid(
                f"No inventory record with resource class '{name}' on provider {of}: POST it first."
            )
        _set_one(tx, of, name, wanted)

    found, _ = await call.db.write(providers.changed(of, body.resource_provider_generation, change))
    return _one(call, found, wanted)


async def delete_one(call: Call) -> Response:
    call.need_admin()
    of, name = call.uuid(), call.part("resource_class")

    def change(tx: Tx) -> None:
        _its(providers.stock(tx, of), of, name)
        _set_one(tx, of, name, None)

    await call.db.write(providers.changed(of, None, change))
    return no_content()


async def usages(call: Call) -> Response:
    call.need_admin()
    found, stock = await call.on_provider(providers.stock)
    used = {name: stock[name].used for name in sorted(stock)}
    return call.answer({GENERATION: found.generation, "usages": used})


async def allocations(call: Call) -> Response:
    call.need_admin()
    found, held = await call.on_provider(placement_allocations.on_provider)
    views: dict[str, Any] = {}
    for consumer, (generation, resources) in held.items():
        views[consumer] = {"resources": resources}
        if call.version >= CONSUMER_GENERATIONS:
            views[consumer]["consumer_generation"] = generation
    return call.answer({GENERATION: found.generation, "allocations": views})


ROUTES: Routes = {
    "/resource_providers/{uuid}/inventories": {
        "GET": At(show_all),
        "PUT": At(put_all),
        "POST": At(post_one),
        "DELETE": At(delete_all, 5),
    },
    "/resource_providers/{uuid}/inventories/{resource_class}": {
        "GET": At(show_one),
        "PUT": At(put_one),
        "DELETE": At(delete_one),
    },
    "/resource_providers/{uuid}/usages": {"GET": At(usages)},
    "/resource_providers/{uuid}/allocations": {"GET": At(allocations)},
}
