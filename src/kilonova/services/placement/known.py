"""Whether a name of a trait or a resource class is known: a standard one, or one that was added."""

from __future__ import annotations

from kilonova.db import placement_names
from kilonova.db.engine import Tx
from kilonova.services.placement import standard

_CLASSES = frozenset(standard.RESOURCE_CLASSES)


def trait(tx: Tx, name: str) -> bool:
    return name in standard.TRAITS or (standard.is_name(name) and placement_names.traits.known(tx, name))


def resource_class(tx: Tx, name: str) -> bool:
    return name in _CLASSES or (standard.is_name(name) and placement_names.resource_classes.known(tx, name))


def hold_trait(tx: Tx, name: str) -> bool:
    """Whether a trait is known, and stays so until this transaction ends."""
    return name in standard.TRAITS or (standard.is_name(name) and placement_names.traits.hold(tx, name))


def hold_class(tx: Tx, name: str) -> bool:
    """The same of a resource class."""
    return name in _CLASSES or (standard.is_name(name) and placement_names.resource_classes.hold(tx, name))


def traits(tx: Tx) -> list[str]:
    return sorted({*standard.TRAITS, *placement_names.traits.all(tx)})


def resource_classes(tx: Tx) -> list[str]:
    """The standard ones in their own order, then the others."""
    more = [name for name in placement_names.resource_classes.all(tx) if name not in _CLASSES]
    return [*standard.RESOURCE_CLASSES, *more]
