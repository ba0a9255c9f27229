"""All providers with all that is theirs, for views in memory: whole, or what has changed since."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Column, ColumnElement, bindparam, cast, func, select

from kilonova.db.engine import Statement, Tx
from kilonova.db.placement_providers import Provider, Stock
from kilonova.db.tables.placement import (
    inventories,
    provider_aggregates,
    provider_traits,
    resource_providers,
)
from kilonova.model.host import Inventory

_p, _i, _t, _g = resource_providers, inventories, provider_traits, provider_aggregates
_FIELDS = Inventory.__struct_fields__
CHUNK = 64  # providers that one statement reads
MANY = 512  # from here on it is faster to read all

Mark = tuple[int, int]
"""How many providers there are, and the sum of their revisions: another one when anything has changed."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one provider."""

    provider: Provider
    revision: int
    stock: dict[str, Stock]
    traits: frozenset[str]
    aggregates: frozenset[str]


class _Pair:
    """A statement for all providers, and the same for some.  It is compiled for as many as a chunk has; the
    last name is repeated where there are fewer."""

    def __init__(self, of: Column[str], *columns: ColumnElement[Any]) -> None:
        some = of.in_([bindparam(f"u{number}") for number in range(CHUNK)])
        self._all = Statement(select(*columns))
        self._some = Statement(select(*columns).where(some))

    def rows(self, tx: Tx, uuids: Collection[str] | None) -> Iterator[tuple[Any, ...]]:
        if uuids is None:
            yield from tx.all(self._all)
            return
        names = sorted(uuids)
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            chunk += chunk[-1:] * (CHUNK - len(chunk))
            yield from tx.all(self._some, **{f"u{number}": name for number, name in enumerate(chunk)})


_MARK = Statement(select(func.count(), cast(func.coalesce(func.sum(_p.c.revision), 0), BigInteger)))
_REVISIONS = Statement(select(_p.c.uuid, _p.c.revision))
_PROVIDERS = _Pair(_p.c.uuid, *(_p.c[name] for name in Provider.__struct_fields__), _p.c.revision)
_STOCK = _Pair(
    _i.c.provider, _i.c.provider, _i.c.resource_class, _i.c.used, *(_i.c[name] for name in _FIELDS)
)
_TRAITS = _Pair(_t.c.provider, _t.c.provider, _t.c.trait)
_AGGREGATES = _Pair(_g.c.provider, _g.c.provider, _g.c.aggregate)


def mark(tx: Tx) -> Mark:
    row = tx.one(_MARK)
    assert row is not None
    return int(row[0]), int(row[1])


def revisions(tx: Tx) -> dict[str, int]:
    """Provider uuid -> its revision."""
    return {row[0]: row[1] for row in tx.all(_REVISIONS)}


def summaries(tx: Tx, uuids: Collection[str] | None = None) -> list[Summary]:
    """These providers, or all, by four statements (for each chunk)."""
    if uuids is not None and len(uuids) > MANY:
        wanted = frozenset(uuids)
        return [each for each in summaries(tx) if each.provider.uuid in wanted]
    stock: dict[str, dict[str, Stock]] = {}
    for row in _STOCK.rows(tx, uuids):
        inventory = Inventory(**dict(zip(_FIELDS, row[3:], strict=True)))
        stock.setdefault(row[0], {})[row[1]] = Stock(inventory, int(row[2]))
    traits, aggregates = _sets(_TRAITS.rows(tx, uuids)), _sets(_AGGREGATES.rows(tx, uuids))
    return [
        Summary(
            provider=_provider(row),
            revision=row[-1],
            stock=stock.get(row[0], {}),
            traits=frozenset(traits.get(row[0], ())),
            aggregates=frozenset(aggregates.get(row[0], ())),
        )
        for row in _PROVIDERS.rows(tx, uuids)
    ]


def _provider(row: tuple[Any, ...]) -> Provider:
    return Provider(**dict(zip(Provider.__struct_fields__, row[:-1], strict=True)))


def _sets(rows: Iterator[tuple[Any, ...]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for provider, name in rows:
        found.setdefault(provider, set()).add(name)
    return found
