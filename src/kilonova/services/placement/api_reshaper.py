"""Moving inventories, and what is held of them, between providers in one go."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from kilonova.db import placement_allocations as allocations
from kilonova.db import placement_reshape
from kilonova.db.engine import Tx
from kilonova.db.placement_reshape import Stocked
from kilonova.errors import Invalid
from kilonova.services.placement.api_allocations import check_classes, read_puts
from kilonova.services.placement.api_inventories import Whole, hold_classes, inventory_of
from kilonova.services.placement.call import At, Call, Routes, UnknownProvider, convert, no_content, read_uuid


class Body(msgspec.Struct, forbid_unknown_fields=True):
    inventories: dict[str, Any]
    allocations: dict[str, Any]


async def post(call: Call) -> Response:
    call.need_admin()
    body = convert(await call.large_body(), Body)
    stocked = _stocked(call, body.inventories)
    wanted = read_puts(call, body.allocations)

    def change(tx: Tx) -> None:
        hold_classes(tx, {name for each in stocked.values() for name in each.inventories})
        check_classes(tx, wanted)
        try:
            placement_reshape.reshape(tx, stocked, wanted)
        except allocations.NoSuchProvider as error:
            raise UnknownProvider(str(error)) from error

    await call.db.write(change)
    return no_content()


def _stocked(call: Call, found: dict[str, Any]) -> dict[str, Stocked]:
    """Raises Invalid."""
    if not found:
        raise Invalid("JSON does not validate: 'inventories' must not be empty.")
    result: dict[str, Stocked] = {}
    for text, value in found.items():
        uuid = read_uuid(text)
        if uuid is None or uuid in result:
            raise Invalid(f"JSON does not validate: {text} is no uuid of a provider, or stands twice.")
        whole = convert(value, Whole)
        inventories = {name: inventory_of(call, name, uuid, each) for name, each in whole.inventories.items()}
        result[uuid] = Stocked(inventories, whole.resource_provider_generation)
    return result


ROUTES: Routes = {"/reshaper": {"POST": At(post, 30)}}
