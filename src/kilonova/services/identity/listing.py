"""Filters of lists: ``name=``, ``enabled=``, ``name__contains=`` and the like, ``limit`` and ``marker``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from kilonova.db import identity_records as records
from kilonova.db.engine import Tx
from kilonova.db.identity_records import R
from kilonova.errors import Invalid
from kilonova.services.identity.call import Call

_WAYS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda value, wanted: wanted in value,
    "icontains": lambda value, wanted: wanted.lower() in value.lower(),
    "startswith": lambda value, wanted: value.startswith(wanted),
    "istartswith": lambda value, wanted: value.lower().startswith(wanted.lower()),
    "endswith": lambda value, wanted: value.endswith(wanted),
    "iendswith": lambda value, wanted: value.lower().endswith(wanted.lower()),
}
_TAGS: dict[str, Callable[[set[str], set[str]], bool]] = {
    "tags": lambda has, wanted: wanted <= has,
    "tags-any": lambda has, wanted: not wanted.isdisjoint(has),
    "not-tags": lambda has, wanted: not wanted <= has,
    "not-tags-any": lambda has, wanted: wanted.isdisjoint(has),
}
MAX_LIMIT = 10_000


class Filter(msgspec.Struct, frozen=True):
    """What a list was asked to have in it."""

    equal: dict[str, object]
    like: tuple[tuple[str, str, str], ...]  # column, way, text
    marker: str | None
    limit: int | None
    tags: tuple[tuple[str, frozenset[str]], ...] = ()  # way, tags

    def select(self, tx: Tx, kind: type[R], ids: Iterable[str] | None = None) -> list[R]:
        """The records, of those of ``ids`` if given."""
        limit = None if self.like or self.tags else self.limit
        found = records.select_all(tx, kind, self.equal, ids=ids, marker=self.marker, limit=limit)
        found = [each for each in found if self._is_like(each)]
        return found[: self.limit]

    def is_full(self, found: list[Any]) -> bool:
        """Whether there may be more than what was found."""
        return self.limit is not None and len(found) == self.limit

    def _is_like(self, record: Any) -> bool:
        return all(_WAYS[way](getattr(record, name) or "", text) for name, way, text in self.like) and all(
            _TAGS[way](set(record.tags), set(wanted)) for way, wanted in self.tags
        )


def read_filter(call: Call, *names: str) -> Filter:
    """The filter in the query of a request.  Raises Invalid for a limit that is no number.

    With ``tags`` among the names, also Keystone's four filters of tags.
    """
    equal: dict[str, object] = {}
    for name in names:
        value = call.query(name)
        if name == "enabled" and name in call.request.query_params:
            equal[name] = call.flag(name)
        elif value is not None and name != "tags":
            equal[name] = value
    like = []
    for key in call.request.query_params:
        name, _, way = key.partition("__")
        if way in _WAYS and name in names and name not in ("enabled", "tags"):
            like.append((name, way, call.query(key) or ""))
    tags = [(way, call.query(way)) for way in _TAGS] if "tags" in names else []
    return Filter(
        equal,
        tuple(like),
        call.query("marker"),
        _limit(call.query("limit")),
        tuple((way, frozenset(value.split(","))) for way, value in tags if value is not None),
    )


def _limit(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) < 1:
        raise Invalid("The query parameter limit must be a whole number above zero.")
    return min(int(text), MAX_LIMIT)
