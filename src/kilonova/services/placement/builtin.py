"""Placement in the database of the process itself."""

from __future__ import annotations

import contextlib

from kilonova.clock import Clock
from kilonova.db import placement as bookings
from kilonova.db import placement_names as names
from kilonova.db import placement_providers, placement_report
from kilonova.db.engine import Database, Tx, UniqueViolation
from kilonova.errors import Invalid, NotFound, TryAgain
from kilonova.model.host import Inventory
from kilonova.services.placement import standard
from kilonova.services.placement.port import Allocations, Also, ProviderSummary

ATTEMPTS = 3  # to report a provider that somebody else is making at the same moment


class _TakenBack(Exception):
    """Rolls a transaction back; its caller hears False."""


class BuiltinPlacement:
    """A Placement: the functions of `kilonova.db.placement`, each in a transaction of its own."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self.db = db
        self.clock = clock

    async def report(
        self, uuid: str, name: str, inventories: dict[str, Inventory], traits: tuple[str, ...]
    ) -> None:
        """Also remembers the names of traits and classes that are not standard, so that they are listed.

        Raises Invalid for a name that cannot be one.
        """
        for each in (*inventories, *traits):
            if not standard.is_name(each):
                raise Invalid(f"'{each}' is no name of a trait or a resource class (A-Z, 0-9 and _).")
        new_classes = set(inventories) - set(standard.RESOURCE_CLASSES)
        new_traits = set(traits) - standard.TRAITS

        def transaction(tx: Tx) -> None:
            names.resource_classes.add_all(tx, new_classes)
            names.traits.add_all(tx, new_traits)
            placement_report.report(tx, uuid, name, inventories, traits)

        for _ in range(ATTEMPTS):
            try:
                await self.db.write(transaction)
            except UniqueViolation:
                continue
            return
        raise TryAgain(f"Provider {uuid} is being changed by others.")

    async def remove(self, uuid: str) -> None:
        with contextlib.suppress(NotFound):
            await self.db.write(lambda tx: placement_providers.remove(tx, uuid))

    async def set_aggregate(self, uuid: str, aggregate: str, member: bool) -> None:
        await self.db.write(lambda tx: placement_report.put(tx, uuid, "aggregate", aggregate, member))

    async def set_trait(self, uuid: str, trait: str, present: bool) -> None:
        await self.db.write(lambda tx: placement_report.put(tx, uuid, "trait", trait, present))

    async def providers(self) -> list[ProviderSummary]:
        return [_summary(each) for each in await self.db.read(placement_report.summaries)]

    async def claim(
        self,
        consumer: str,
        allocations: Allocations,
        project_id: str,
        user_id: str,
        *,
        also: Also | None = None,
        consumer_type: str = "INSTANCE",
    ) -> bool:
        def transaction(tx: Tx) -> bool:
            fitted = bookings.claim(
                tx, consumer, allocations, project_id, user_id, consumer_type=consumer_type
            )
            if fitted and also is not None and also(tx) is False:
                raise _TakenBack
            return fitted

        try:
            return await self.db.write(transaction)
        except _TakenBack:
            return False

    async def release(self, consumer: str) -> None:
        await self.db.write(lambda tx: bookings.release(tx, consumer))

    async def held(self, consumer: str) -> Allocations:
        return await self.db.read(lambda tx: bookings.held(tx, consumer))


def _summary(found: placement_report.Summary) -> ProviderSummary:
    return ProviderSummary(
        uuid=found.provider.uuid,
        name=found.provider.name,
        generation=found.provider.generation,
        inventories={name: stock.inventory for name, stock in found.stock.items()},
        used={name: stock.used for name, stock in found.stock.items()},
        traits=found.traits,
        aggregates=found.aggregates,
        parent=found.provider.parent,
    )
