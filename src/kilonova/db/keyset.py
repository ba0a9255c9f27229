"""Lists that are ordered by some columns and go on after a marker, and what moments are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Table, UnaryExpression, and_, func, or_

OPERATORS: dict[str, Callable[[Any, Any], ColumnElement[bool]]] = {
    "eq": lambda column, value: column == value,
    "neq": lambda column, value: column != value,
    "gt": lambda column, value: column > value,
    "gte": lambda column, value: column >= value,
    "lt": lambda column, value: column < value,
    "lte": lambda column, value: column <= value,
}
"""Those of Glance's and Cinder's filters."""


class Sort(msgspec.Struct, frozen=True):
    key: str  # a column
    descending: bool


class Keyset:
    """The order of a table's lists.  ``nulls``: as what a missing value of a column sorts, which is then the
    same on every database."""

    def __init__(self, table: Table, nulls: Mapping[str, Any]) -> None:
        self._table = table
        self._nulls = nulls

    def _key(self, name: str) -> ColumnElement[Any]:
        column = self._table.c[name]
        return func.coalesce(column, self._nulls[name]) if name in self._nulls else column

    def order(self, sorts: Sequence[Sort]) -> list[UnaryExpression[Any]]:
        """For ``order_by``."""
        keys = ((self._key(each.key), each.descending) for each in sorts)
        return [key.desc() if descending else key.asc() for key, descending in keys]

    def after(self, sorts: Sequence[Sort], marker: object) -> ColumnElement[bool]:
        """Strictly after the marker: equal in the first n keys and beyond it in the next."""
        equal: list[ColumnElement[bool]] = []
        choices: list[ColumnElement[bool]] = []
        for each in sorts:
            value = getattr(marker, each.key)
            value = self._nulls[each.key] if value is None else value
            key = self._key(each.key)
            choices.append(and_(*equal, key < value if each.descending else key > value))
            equal.append(key == value)
        return or_(*choices)
