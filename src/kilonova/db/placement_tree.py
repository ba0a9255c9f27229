"""A host's whole tree of providers, with who holds what of it, and moving that to other providers of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from kilonova.db import placement, placement_report, placement_reshape
from kilonova.db import placement_allocations as allocations
from kilonova.db import placement_providers as providers
from kilonova.db.engine import Tx
from kilonova.errors import NotFound
from kilonova.model.host import ProviderReport
from kilonova.resources.reshape import Before, Reshape

MANAGED = "COMPUTE_MANAGED_PCI_DEVICE"
"""The trait of providers that stand for PCI devices."""


def before(tx: Tx, root: str) -> Before | None:
    """The tree below and with ``root``, which nobody books on until the transaction ends; None without it."""
    try:
        tree = sorted(providers.below(tx, providers.show(tx, root)))
    except NotFound:
        return None
    for uuid in tree:
        providers.lock(tx, uuid)
    holders = {consumer for uuid in tree for consumer in allocations.on_provider(tx, uuid)}
    return Before(
        inventories={
            uuid: {name: stock.inventory for name, stock in providers.stock(tx, uuid).items()}
            for uuid in tree
        },
        held={consumer: placement.held(tx, consumer) for consumer in sorted(holders)},
        of_devices=frozenset(uuid for uuid in tree if MANAGED in providers.traits_of.of(tx, uuid)),
    )


def follow(
    tx: Tx, tree: Sequence[ProviderReport], plan: Callable[[Before], Reshape | None]
) -> Reshape | None:
    """Move what is held as ``plan`` says; providers that are new are made before.  Raises what it does."""
    known = before(tx, tree[0].uuid)
    found = None if known is None else plan(known)
    if known is None or found is None:
        return None
    new = [each for each in tree if each.uuid not in known.inventories]
    placement_report.report_tree(tx, [msgspec.structs.replace(each, inventories={}) for each in new])
    placement_reshape.rebooked(tx, found.inventories, found.allocations)
    return found
