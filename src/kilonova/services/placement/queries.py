"""The values of query parameters that say what a provider must be like.

They mean the same of a list of providers and of allocation candidates.  All raise BadQuery.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from kilonova.db.engine import Tx
from kilonova.services.placement import known, standard
from kilonova.services.placement.call import BadQuery, read_uuid
from kilonova.services.placement.candidates.wanted import Amounts, Group

FORBIDDEN_AGGREGATES, FORBIDDEN_TRAITS, ANY_TRAITS, SEVERAL_AGGREGATES = 32, 22, 39, 24
LARGEST = 2**31 - 1


class Traits(msgspec.Struct, frozen=True):
    required: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    any_of: tuple[frozenset[str], ...] = ()


def resources(value: str) -> Amounts:
    """``VCPU:2,MEMORY_MB:1024``."""
    amounts: dict[str, int] = {}
    for part in value.split(","):
        name, _, amount = part.partition(":")
        if (
            not (amount.isascii() and amount.isdecimal() and len(amount) <= 10)
            or not 0 < int(amount) <= LARGEST
        ):
            got = value or "empty string"
            raise BadQuery(f"Badly formed resources parameter, got: {got}. Use e.g. VCPU:4,MEMORY_MB:512.")
        amounts[name] = int(amount)
    return tuple(sorted(amounts.items()))


def traits(key: str, values: Sequence[str], version: int) -> Traits:
    """``A,B``, since 1.22 ``!C`` among them, since 1.39 ``in:A,B`` and several of all these."""
    yes, no, any_of = set(), set(), []
    for value in values:
        if value.startswith("in:") and version >= ANY_TRAITS and key != "root_required":
            any_of.append(frozenset(value[3:].split(",")))
            continue
        for part in value.split(","):
            if part.startswith("!") and version >= FORBIDDEN_TRAITS:
                no.add(part[1:])
            else:
                yes.add(part)
    for name in {*yes, *no}.union(*any_of):
        if not name or (name.startswith("!") and version < FORBIDDEN_TRAITS):
            raise BadQuery(
                f"Invalid query string parameters: '{key}' must be traits separated by commas, like "
                f"HW_CPU_X86_VMX{',!CUSTOM_MAGIC' if version >= FORBIDDEN_TRAITS else ''}, got: "
                f"{'&'.join(values) or 'empty string'}."
            )
    if yes & no:
        names = ", ".join(sorted(yes & no))
        raise BadQuery(f"Conflicting required and forbidden traits found in {key}: {names}.")
    return Traits(frozenset(yes), frozenset(no), tuple(any_of))


def member_of(
    key: str, values: Sequence[str], version: int
) -> tuple[tuple[frozenset[str], ...], frozenset[str]]:
    """``<uuid>``, ``in:<uuid>,<uuid>`` and, since 1.32, ``!`` before either.

    The aggregates of which it must be in one each, and those in which it must not be.
    """
    if len(values) > 1 and version < SEVERAL_AGGREGATES:
        raise BadQuery(f"Multiple {key} parameters are not supported at 1.{version}.")
    several: list[frozenset[str]] = []
    none_of: set[str] = set()
    for value in values:
        forbidden = value.startswith("!") and version >= FORBIDDEN_AGGREGATES
        if value.startswith("!") and not forbidden:
            raise BadQuery(f"Forbidden {key} parameters are not supported at 1.{version}.")
        rest = value[1:] if forbidden else value
        names = [read_uuid(name) for name in (rest[3:].split(",") if rest.startswith("in:") else [rest])]
        found = frozenset(name for name in names if name is not None)
        if None in names:
            raise BadQuery(
                f"Invalid query string parameters: Expected '{key}' parameter to contain valid UUID(s) "
                f"(several of them after 'in:'), got: {value}."
            )
        if forbidden:
            none_of |= found
        else:
            several.append(found)
    return tuple(several), frozenset(none_of)


def one_uuid(key: str, value: str) -> str:
    found = read_uuid(value)
    if found is None:
        raise BadQuery(
            f"Invalid query string parameters: Expected '{key}' parameter to be a format of uuid, got: "
            f"{value}."
        )
    return found


def check_names(tx: Tx, groups: Iterable[Group], more_traits: Iterable[str] = ()) -> None:
    """Whether all resource classes and traits that are asked for are known."""
    names = set(more_traits)
    for group in groups:
        names |= group.required.union(group.forbidden, *group.any_of)
        for name, _ in group.resources:
            if not known.resource_class(tx, name):
                raise BadQuery(f"Invalid resource class in resources parameter: no such class {name}.")
    wrong = sorted(name for name in names if not standard.is_name(name) or not known.trait(tx, name))
    if wrong:
        raise BadQuery(f"No such trait(s): {', '.join(wrong)}.")
