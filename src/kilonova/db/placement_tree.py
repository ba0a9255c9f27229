"""What is held of a host's tree of providers, moved to other providers of it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from kilonova.db import placement, placement_report, placement_reshape
from kilonova.db import placement_allocations as allocations
from kilonova.db import placement_providers as providers
from kilonova.db.engine import Tx
from kilonova.errors import NotFound
from kilonova.model.host import ProviderReport
from kilonova.resources.reshape import Following, Reshape, Tree

MANAGED = "COMPUTE_MANAGED_PCI_DEVICE"
"""The trait of providers that stand for PCI devices."""


def follow(tx: Tx, tree: Sequence[ProviderReport], what: Following) -> Reshape | None:
    """Move what has to follow a report; providers that are new are made before.

    None when nothing has to, which costs a few statements however much is held.  Raises Conflict.
    """
    known = _known(tx, tree[0].uuid)
    if known is None:
        return None
    placement_report.check_ownership(tx, tree)
    concerned = what.owners(known)
    for uuid in sorted({provider for provider, _ in what.gone(known)}):
        concerned |= allocations.on_provider(tx, uuid).keys()
    held = {consumer: placement.held(tx, consumer) for consumer in sorted(concerned)}
    found = what.reshape(known, {consumer: each for consumer, each in held.items() if each})
    if found is None:
        return None
    for each in tree:
        if each.uuid not in known.inventories:
            placement_report.report(tx, msgspec.structs.replace(each, inventories={}))
    placement_reshape.rebooked(tx, found.inventories, found.allocations)
    return found


def _known(tx: Tx, root: str) -> Tree | None:
    """The tree below and with ``root``, which nobody books on until the transaction ends; None without it."""
    try:
        tree = sorted(providers.below(tx, providers.show(tx, root)))
    except NotFound:
        return None
    for uuid in tree:
        providers.lock(tx, uuid)
    stock = {uuid: providers.stock(tx, uuid) for uuid in tree}
    return Tree(
        inventories={
            uuid: {name: one.inventory for name, one in each.items()} for uuid, each in stock.items()
        },
        used={uuid: {name: one.used for name, one in each.items()} for uuid, each in stock.items()},
        of_devices=frozenset(uuid for uuid in tree if MANAGED in providers.traits_of.of(tx, uuid)),
    )
