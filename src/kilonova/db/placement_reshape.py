"""Inventories that move between providers together with what is held of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from kilonova.db import placement
from kilonova.db import placement_allocations as allocations
from kilonova.db import placement_providers as providers
from kilonova.db.engine import Tx
from kilonova.db.placement_allocations import Put
from kilonova.errors import NotFound
from kilonova.model.host import Inventory


class Stocked(msgspec.Struct, frozen=True):
    """All that a provider shall have; ``generation`` is what the caller knows, None for no check."""

    inventories: Mapping[str, Inventory]
    generation: int | None = None


def reshape(tx: Tx, stocked: Mapping[str, Stocked], wanted: Sequence[Put]) -> None:
    """Give providers those inventories, and consumers those allocations, all or nothing.

    What is held is moved before an inventory goes.  Raises ConcurrentUpdate, NoSuchProvider, DoesNotFit,
    InventoryInUse (somebody who is not in ``wanted`` holds something that would go).
    """
    locked = allocations.lock(tx, wanted, {uuid: each.generation for uuid, each in stocked.items()})
    for uuid in sorted(stocked):
        there = {name: each.inventory for name, each in providers.stock(tx, uuid).items()}
        providers.set_stock(tx, uuid, {**there, **stocked[uuid].inventories})
    allocations.put(tx, wanted, locked)
    for uuid in sorted(stocked):
        providers.set_stock(tx, uuid, stocked[uuid].inventories)
        providers.bump(tx, locked.providers[uuid])


def rebooked(
    tx: Tx, inventories: Mapping[str, Mapping[str, Inventory]], held: Mapping[str, placement.Held]
) -> None:
    """The same for consumers that are known, who stay whose they are: consumer -> all that it shall hold.

    Raises NotFound for a consumer that holds nothing today.
    """
    wanted = []
    for uuid in sorted(held):
        found = allocations.consumer(tx, uuid)
        if found is None:
            raise NotFound(f"No allocations for consumer '{uuid}'.")
        wanted.append(Put(found, held[uuid], found.generation))
    reshape(tx, {uuid: Stocked(each) for uuid, each in inventories.items()}, wanted)
