"""What the rest of the house asks of a placement service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from kilonova.db.engine import Tx
from kilonova.model.host import Inventory, ProviderReport
from kilonova.resources.reshape import Following, Reshape

if TYPE_CHECKING:
    from kilonova.services.placement.candidates.wanted import Wanted

Allocations = dict[str, dict[str, int]]
"""Provider uuid -> resource class -> amount."""

Also = Callable[[Tx], bool | None]
"""What a caller does in the transaction of a booking; False undoes both."""


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
        self,
        uuid: str,
        name: str,
        inventories: dict[str, Inventory],
        traits: tuple[str, ...],
        initial_ratios: tuple[str, ...] = (),
    ) -> None:
        """Say what a provider has; made if it is new.  ``initial_ratios``: see ProviderReport.

        Less than is in use may be left, as in Placement: nothing fits until there is room again.  Raises
        Conflict when a class would go that is in use.
        """

    async def report_tree(self, providers: Sequence[ProviderReport]) -> list[str]:
        """Say what a host's whole tree has, parents before their children: one transaction.

        Providers below these that were reported before and are not any more go away.  Those that somebody
        holds something of stay, and those above them: their uuids are the answer.  What others have made by
        the API stays.  Raises Conflict as ``report`` does, Invalid for a tree that is none.
        """

    async def reshape(
        self, inventories: dict[str, dict[str, Inventory]], allocations: dict[str, Allocations]
    ) -> None:
        """Move inventories between providers that are there, together with what is held of them: one
        transaction.

        ``inventories``: provider -> all that it shall have.  ``allocations``: consumer -> all that it shall
        hold; the others keep what they hold.  Raises NotFound (a provider; a consumer that holds nothing),
        Conflict (it does not fit, somebody else holds what would go, or has changed it meanwhile).
        """

    async def follow(self, what: Following) -> Reshape | None:
        """Move what is held of a host's tree to where its report has the inventories, before that is told by
        ``report_tree``: one transaction, in which providers that are new are made.

        What was done; None when there was nothing to do, as for a tree that is new.  Raises Conflict when
        there is no room for what would move.
        """

    async def remove(self, uuid: str) -> None:
        """Forget a provider; one that is not there is forgotten already.  Raises Conflict while anything is
        booked on it."""

    async def set_aggregate(self, uuid: str, aggregate: str, member: bool) -> None:
        """Whether a provider is in an aggregate (a uuid).  Raises NotFound for an unknown provider."""

    async def set_trait(self, uuid: str, trait: str, present: bool) -> None:
        """Whether a provider has a trait.  Raises NotFound for an unknown provider."""

    async def providers(self) -> list[ProviderSummary]: ...

    async def candidates(self, wanted: Wanted) -> dict[str, list[Allocations]]:
        """Root provider -> what could be booked in its tree, and beside it where others share."""

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
        """Book all of ``allocations`` for ``consumer``, or nothing: one transaction, compare-and-set.

        ``also`` is run in the same transaction after the booking: with False from it, or an error, nothing is
        booked and nothing of what it wrote is kept.  False when they do not fit (any more) or ``also`` said
        so; an error of ``also`` goes on.  Converges: a consumer that holds exactly this gets True, after
        ``also`` was run again.  Raises NotFound for an unknown provider, Conflict for a consumer that holds
        something else.
        """

    async def move(
        self,
        consumer: str,
        to: str,
        *,
        consumer_type: str | None = None,
        generation: int | None = None,
        also: Also | None = None,
    ) -> bool:
        """Hand all that ``consumer`` holds to ``to``, which holds nothing: one transaction, and nothing is
        given back in between, so that it goes on a full host as well.

        False when there is nothing (any more), and then ``also`` is not run; as in ``claim`` it can undo all.
        ``consumer_type``: of the other, by default that of the first.  ``generation``: what the caller knows
        of the first, None for any.  Raises Conflict when the other holds something, or the generation is
        another one.
        """

    async def release(self, consumer: str, *, also: Also | None = None) -> None:
        """Give back all that the consumer holds; ``also`` is run in the same transaction, in any case."""

    async def held(self, consumer: str) -> Allocations:
        """What the consumer holds; empty if it is unknown."""
