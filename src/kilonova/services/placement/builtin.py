"""Placement in the database of the process itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from kilonova.clock import Clock
from kilonova.db import placement as bookings
from kilonova.db import (
    placement_allocations,
    placement_providers,
    placement_report,
    placement_reshape,
    placement_tree,
)
from kilonova.db import placement_names as names
from kilonova.db.engine import Database, Tx, UniqueViolation
from kilonova.errors import Invalid, NotFound, TryAgain
from kilonova.model.host import Inventory, ProviderReport
from kilonova.resources.reshape import Following, Reshape
from kilonova.services.placement import standard
from kilonova.services.placement.candidates.booked import by_root
from kilonova.services.placement.candidates.wanted import Wanted
from kilonova.services.placement.options import Options
from kilonova.services.placement.port import Allocations, Also, ProviderSummary
from kilonova.services.placement.view import Views

T = TypeVar("T")

ATTEMPTS = 3  # to report a provider that somebody else is making at the same moment


class _TakenBack(Exception):
    """Rolls a transaction back; its caller hears False."""


class BuiltinPlacement:
    """A Placement: the functions of `kilonova.db.placement`, each in a transaction of its own."""

    def __init__(self, db: Database, clock: Clock, options: Options | None = None) -> None:
        self.db = db
        self.clock = clock
        self.options = options or Options()
        self.views = Views(db)

    async def report(
        self,
        uuid: str,
        name: str,
        inventories: dict[str, Inventory],
        traits: tuple[str, ...],
        initial_ratios: tuple[str, ...] = (),
    ) -> None:
        one = ProviderReport(
            uuid=uuid, name=name, inventories=inventories, traits=traits, initial_ratios=initial_ratios
        )
        await self._told([one], lambda tx: placement_report.report(tx, one))

    async def report_tree(self, providers: Sequence[ProviderReport]) -> list[str]:
        return await self._told(providers, lambda tx: placement_report.report_tree(tx, providers))

    async def _told(self, reports: Sequence[ProviderReport], write: Callable[[Tx], T]) -> T:
        """Also remembers the names of traits and classes that are not standard, so that they are listed.

        Raises Invalid for a name that cannot be one.
        """
        classes = {name for each in reports for name in each.inventories}
        traits = {name for each in reports for name in each.traits}
        for name in (*classes, *traits):
            if not standard.is_name(name):
                raise Invalid(f"'{name}' is no name of a trait or a resource class (A-Z, 0-9 and _).")

        def transaction(tx: Tx) -> T:
            names.resource_classes.add_all(tx, classes - set(standard.RESOURCE_CLASSES))
            names.traits.add_all(tx, traits - standard.TRAITS)
            return write(tx)

        for _ in range(ATTEMPTS):
            try:
                return await self.db.write(transaction)
            except UniqueViolation:
                continue
        raise TryAgain(f"Provider {reports[0].uuid} is being changed by others.")

    async def reshape(
        self, inventories: dict[str, dict[str, Inventory]], allocations: dict[str, Allocations]
    ) -> None:
        await self.db.write(lambda tx: placement_reshape.rebooked(tx, inventories, allocations))

    async def follow(self, what: Following) -> Reshape | None:
        tree = what.report.tree
        return await self._told(tree, lambda tx: placement_tree.follow(tx, tree, what))

    async def remove(self, uuid: str) -> None:
        with contextlib.suppress(NotFound):
            await self.db.write(lambda tx: placement_providers.remove(tx, uuid))

    async def set_aggregate(self, uuid: str, aggregate: str, member: bool) -> None:
        await self.db.write(lambda tx: placement_report.put(tx, uuid, "aggregate", aggregate, member))

    async def set_trait(self, uuid: str, trait: str, present: bool) -> None:
        await self.db.write(lambda tx: placement_report.put(tx, uuid, "trait", trait, present))

    async def providers(self) -> list[ProviderSummary]:
        return [node.summary for node in (await self.views.current()).by_name]

    async def candidates(self, wanted: Wanted) -> dict[str, list[Allocations]]:
        return by_root(await self.views.current(), wanted, self.options)

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

        return await self._unless_taken_back(transaction)

    async def move(
        self,
        consumer: str,
        to: str,
        *,
        consumer_type: str | None = None,
        generation: int | None = None,
        also: Also | None = None,
    ) -> bool:
        known = placement_allocations.ANY if generation is None else generation

        def transaction(tx: Tx) -> bool:
            moved = placement_allocations.move(tx, consumer, to, known, consumer_type)
            if moved and also is not None and also(tx) is False:
                raise _TakenBack
            return moved

        return await self._unless_taken_back(transaction)

    async def _unless_taken_back(self, transaction: Callable[[Tx], bool]) -> bool:
        try:
            return await self.db.write(transaction)
        except _TakenBack:
            return False

    async def release(self, consumer: str, *, also: Also | None = None) -> None:
        def transaction(tx: Tx) -> None:
            bookings.release(tx, consumer)
            if also is not None:
                also(tx)

        await self.db.write(transaction)

    async def held(self, consumer: str) -> Allocations:
        return await self.db.read(lambda tx: bookings.held(tx, consumer))
