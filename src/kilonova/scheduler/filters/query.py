"""JsonFilter: the hint ``query``, an expression over what a host says of itself.

``["and", [">=", "$free_ram_mb", 1024], ["=", "$hypervisor_type", "QEMU"]]``: the operators are ``= < > <= >=
in not or and``; a text that begins with ``$`` is a fact of the host.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from kilonova.scheduler.columns import Columns, Mask
from kilonova.scheduler.facts import fact_of
from kilonova.scheduler.question import Filter, Question

MOST_DEEP = 20

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}


def _query(question: Question) -> Any:
    found = question.request.hints.get("query")
    if isinstance(found, list):  # clients send a hint in a list when it may be repeated
        found = found[0] if len(found) == 1 and isinstance(found[0], str) else found
    if isinstance(found, str):
        try:
            return msgspec.json.decode(found)
        except msgspec.DecodeError:
            return None
    return found


def holds(query: Any, columns: Columns, row: int) -> bool:
    """Whether the host is as the query wants it.  What makes no sense does not hold."""
    try:
        return bool(_value(query, columns, row, 0))
    except (TypeError, ValueError, IndexError):
        return False


def _value(query: Any, columns: Columns, row: int, depth: int) -> Any:
    """Raises TypeError or ValueError for what makes no sense."""
    if isinstance(query, str):
        return fact_of(columns, row, query[1:].split(".")) if query.startswith("$") else query
    if not isinstance(query, list):
        return query
    if not query or depth > MOST_DEEP:
        raise ValueError("an expression has an operator and operands")
    word, *rest = query
    values = [_value(each, columns, row, depth + 1) for each in rest]
    if word == "and":
        return all(values)
    if word == "or":
        return any(values)
    if word == "not":
        return not any(values)
    if len(values) < 2:
        raise ValueError(f"{word} compares two things")
    if word == "in":
        return values[0] in values[1:]
    return all(_COMPARE[word](values[0], each) for each in values[1:]) if word in _COMPARE else False


def _passes(question: Question, among: Mask) -> Mask:
    query = _query(question)
    mask = np.zeros(question.columns.room, np.bool_)
    for row in np.flatnonzero(among & question.columns.present).tolist():
        mask[row] = holds(query, question.columns, row)
    return mask


JSON = Filter(
    "JsonFilter",
    concerns=lambda question: question.request.hints.get("query") is not None or None,
    passes=_passes,
    why=lambda question, row: "the hint 'query' does not hold there",
)
