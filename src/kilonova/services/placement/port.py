"""What the rest of the house asks of a placement service."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kilonova.model.host import Inventory


class ProviderSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One resource provider: what it has, what is used, what it can do."""

    uuid: str
    name: str
    generation: int
    inventories: dict[str, Inventory]
    used: dict[str, int]
    traits: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()
    parent: str | None = None


class Placement(Protocol):
    async def report(
        self, uuid: str, name: str, inventories: dict[str, Inventory], traits: tuple[str, ...]
    ) -> None:
        """Say what a provider has; made if it is new.  Raises Conflict when less than is in use."""

    async def remove(self, uuid: str) -> None:
        """Forget a provider; one that is not there is forgotten already.  Raises Conflict while anything is
        booked on it."""

    async def set_aggregate(self, uuid: str, aggregate: str, member: bool) -> None:
        """Whether a provider is in an aggregate (a uuid).  Raises NotFound for an unknown provider."""

    async def set_trait(self, uuid: str, trait: str, present: bool) -> None:
        """Whether a provider has a trait.  Raises NotFound for an unknown provider."""

    async def providers(self) -> list[ProviderSummary]: ...

    async def claim(
        self, consumer: str, provider: str, resources: dict[str, int], project_id: str, user_id: str
    ) -> bool:
        """Book all of ``resources`` for ``consumer``, or nothing: one transaction, compare-and-set.

        False when they do not fit (any more).  Converges: a consumer that holds exactly this gets True.
        Raises NotFound for an unknown provider.
        """

    async def release(self, consumer: str) -> None:
        """Give back all that the consumer holds."""

    async def held(self, consumer: str) -> dict[str, dict[str, int]]:
        """Provider uuid -> resource class -> amount."""
