"""The filters of a list of providers: ``member_of``, ``resources``, ``required``."""

from __future__ import annotations

from collections.abc import Callable

from kilonova.db.placement_view import Summary
from kilonova.services.placement import standard
from kilonova.services.placement.call import BadQuery, read_uuid

Test = Callable[[Summary], bool]

FORBIDDEN_AGGREGATES, FORBIDDEN_TRAITS, ANY_TRAITS = 32, 22, 39
LARGEST = 2**31 - 1


def member_of(value: str, version: int) -> Test:
    """``<uuid>``, ``in:<uuid>,<uuid>`` and, since 1.32, ``!`` before either.  Raises BadQuery."""
    wanted = True
    if value.startswith("!") and version >= FORBIDDEN_AGGREGATES:
        wanted, value = False, value[1:]
    names = [read_uuid(name) for name in (value[3:].split(",") if value.startswith("in:") else [value])]
    if None in names:
        raise BadQuery(f"Invalid query string parameters: Expected 'member_of' to have uuids, got: {value}.")
    return lambda found: bool(found.aggregates.intersection(names)) is wanted


def resources(value: str, known: Callable[[str], bool]) -> Test:
    """``VCPU:2,MEMORY_MB:1024``.  Raises BadQuery."""
    amounts: dict[str, int] = {}
    for part in value.split(","):
        name, _, amount = part.partition(":")
        if (
            not (amount.isascii() and amount.isdecimal() and len(amount) <= 10)
            or not 0 < int(amount) <= LARGEST
        ):
            raise BadQuery(f"Badly formed resources parameter: {value}. Use e.g. VCPU:4,MEMORY_MB:512.")
        if not known(name):
            raise BadQuery(f"Invalid resource class in resources parameter: {name}.")
        amounts[name] = int(amount)
    return lambda found: all(_has(found, name, amount) for name, amount in amounts.items())


def _has(found: Summary, name: str, amount: int) -> bool:
    stock = found.stock.get(name)
    if stock is None:
        return False
    has = stock.inventory
    fits = has.min_unit <= amount <= has.max_unit and amount % has.step_size == 0
    return fits and stock.used + amount <= has.capacity


def required(value: str, version: int, known: Callable[[str], bool]) -> list[Test]:
    """``A,B``, since 1.22 ``!C`` among them, since 1.39 ``in:A,B``.  Raises BadQuery."""
    if value.startswith("in:") and version >= ANY_TRAITS:
        names = frozenset(value[3:].split(","))
        _check(names, known)
        return [lambda found: not names.isdisjoint(found.traits)]
    yes, no = set(), set()
    for part in value.split(","):
        if part.startswith("!") and version >= FORBIDDEN_TRAITS:
            no.add(part[1:])
        else:
            yes.add(part)
    _check(yes | no, known)
    if yes & no:
        raise BadQuery(f"Conflicting required and forbidden traits: {', '.join(sorted(yes & no))}.")
    return [lambda found: yes <= found.traits and no.isdisjoint(found.traits)]


def _check(names: frozenset[str] | set[str], known: Callable[[str], bool]) -> None:
    wrong = sorted(name for name in names if not standard.is_name(name) or not known(name))
    if wrong:
        raise BadQuery(f"No such trait(s): {', '.join(wrong)}.")
