"""How a fact is compared with what a flavor wants.

A wanted value may begin with an operator, as in Nova: numbers with ``= == != >= <=`` (``=`` is at least),
texts with ``s== s!= s< s<= s> s>=``, ``<in>``, ``<all-in>`` and ``<or>``; without one it must be that text.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

_NUMBERS: dict[str, Callable[[float, float], bool]] = {
    "=": operator.ge,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "s==": operator.eq,
    "s!=": operator.ne,
    "s<": operator.lt,
    "s<=": operator.le,
    "s>": operator.gt,
    "s>=": operator.ge,
}


def matches(have: Any, wanted: str) -> bool:
    """Whether a fact is as it is wanted.  What cannot be compared does not match."""
    word, *rest = wanted.split() or [""]
    text = have if isinstance(have, str) else str(have)
    if not rest:
        return text == wanted
    if word in _NUMBERS:
        try:
            return _NUMBERS[word](float(text), float(rest[0]))
        except ValueError:
            return False
    if word in _TEXTS:
        return _TEXTS[word](text, rest[0])
    if word in ("<in>", "<all-in>"):
        among = have if isinstance(have, list | tuple) else text
        return all(one in among for one in (rest if word == "<all-in>" else rest[:1]))
    if word == "<or>":
        return text in rest[::2]
    return text == wanted
