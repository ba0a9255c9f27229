"""Shapes of answers, declared once.  Each item says in which microversions it is shown, and to whom:

THING = View(
    Item("id", attrgetter("uuid")),
    Item("host", attrgetter("host"), since=16, rule="os_compute_api:..."),
    Item("links", bind=links_of),   # links_of(call) gives the getter, once an answer
)
render = THING.bind(call)
return {"thing": render(record)}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kilonova.api.microversion import MAX, MIN

if TYPE_CHECKING:
    from kilonova.api.call import Call

Getter = Callable[[Any], Any]
OMIT: Any = object()
"""What a getter of an item with ``optional=True`` gives when the key is to be left out."""


@dataclass(frozen=True, slots=True)
class Item:
    """One key of an answer.  Exactly one of ``get`` (record -> value) and ``bind`` (call -> getter) is given.

    ``rule``: shown only to those whom this policy rule allows; ``public_from``: from there on to all.
    """

    key: str
    get: Getter | None = None
    since: int = MIN
    until: int = MAX
    rule: str | None = None
    public_from: int = MAX + 1
    bind: Callable[[Any], Getter] | None = None
    optional: bool = False

    def shown(self, version: int, may: Callable[[str], bool]) -> bool:
        if not self.since <= version <= self.until:
            return False
        return self.rule is None or version >= self.public_from or may(self.rule)


class View:
    """The keys of an answer, in order."""

    def __init__(self, *items: Item) -> None:
        self.items = items
        self.rules = frozenset(item.rule for item in items if item.rule is not None)
        self._at: dict[tuple[int, frozenset[str]], tuple[list[Item], list[Item]]] = {}

    def keys(self, version: int, allowed: frozenset[str]) -> list[str]:
        """The keys shown in a microversion to a caller whom the rules ``allowed`` allow."""
        always, optional = self.at(version, allowed)
        return [item.key for item in (*always, *optional)]

    def at(self, version: int, allowed: frozenset[str]) -> tuple[list[Item], list[Item]]:
        """The items that are always there and those that may be left out; worked out once."""
        found = self._at.get((version, allowed))
        if found is None:
            shown = [item for item in self.items if item.shown(version, allowed.__contains__)]
            found = self._at[version, allowed] = (
                [item for item in shown if not item.optional],
                [item for item in shown if item.optional],
            )
        return found

    def bind(self, call: Call, target: dict[str, Any] | None = None) -> Callable[[Any], dict[str, Any]]:
        """What renders records for this caller.  ``target`` is what the rules are asked about."""
        allowed = frozenset(rule for rule in self.rules if call.may(rule, target))
        always, optional = self.at(call.version, allowed)
        pairs = [(item.key, _getter(item, call)) for item in always]
        if not optional:
            return lambda record: {key: get(record) for key, get in pairs}
        rest = [(item.key, _getter(item, call)) for item in optional]

        def render(record: Any) -> dict[str, Any]:
            result = {key: get(record) for key, get in pairs}
            for key, get in rest:
                value = get(record)
                if value is not OMIT:
                    result[key] = value
            return result

        return render


def _getter(item: Item, call: Call) -> Getter:
    if item.bind is not None:
        return item.bind(call)
    assert item.get is not None, f"the item {item.key} has no getter"
    return item.get
