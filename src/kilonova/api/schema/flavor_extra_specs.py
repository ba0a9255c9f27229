"""Requests about extra specs.  Keys and values are checked by ``resources/flavor_specs.py``."""

from __future__ import annotations

from kilonova.api.shape import Shape

SpecValue = str | int | float


class SetSpecs(Shape):
    extra_specs: dict[str, SpecValue]


class OneSpec(Shape, of=dict[str, SpecValue]):
    """``{key: value}``, the key being that of the address."""
