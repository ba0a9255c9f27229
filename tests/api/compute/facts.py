"""Nova's fields, as fields.yaml has them, and what an answer is compared with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

NEWEST = 104
_SPAN = re.compile(r"2\.(\d+)(-(?:2\.(\d+))?)?\Z")
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "any": (object,),
    "enum": (object,),
}


@dataclass(frozen=True)
class Span:
    first: int
    last: int

    def __contains__(self, version: int) -> bool:
        return self.first <= version <= self.last


def _spans(text: str) -> tuple[Span, ...]:
    spans = []
    for part in text.split(","):
        found = _SPAN.match(part)
        assert found, part
        first = int(found[1])
        last = first if found[2] is None else int(found[3]) if found[3] else NEWEST
        spans.append(Span(first, last))
    return tuple(spans)


@dataclass(frozen=True)
class Field:
    """One key: where it exists, where it must be there, and its JSON types."""

    spans: tuple[Span, ...]
    required: tuple[Span, ...]
    types: frozenset[str]

    def exists(self, version: int) -> bool:
        return any(version in span for span in self.spans)

    def needed(self, version: int) -> bool:
        return self.exists(version) and any(version in span for span in self.required)

    def fits(self, value: Any) -> bool:
        if isinstance(value, bool) and "boolean" not in self.types and not self.types & {"any", "enum"}:
            return False
        return any(isinstance(value, _TYPES[name]) for name in self.types)


def _field(text: str) -> Field:
    words = text.split()
    spans = _spans(words.pop(0))
    required: tuple[Span, ...] = ()
    if words and words[0] == "required":
        words.pop(0)
        required = spans
        if words and words[0].startswith("2."):
            required = _spans(words.pop(0))
    return Field(spans, required, frozenset(words.pop(0).split("|") if words else ["any"]))


@cache
def facts(part: str) -> dict[str, dict[str, Field]]:
    """Route -> key -> field; ``part`` is query, body or response."""
    found = yaml.safe_load((Path(__file__).parent / "fields.yaml").read_text())
    return {
        each["id"]: {key: _field(text) for key, text in each.get(part, {}).items()}
        for each in found["fields"]
    }


@cache
def strict_since(route: str) -> int | None:
    found = yaml.safe_load((Path(__file__).parent / "fields.yaml").read_text())
    text = next(each for each in found["fields"] if each["id"] == route).get("query_strict")
    return None if text is None else _spans(text)[0].first


def edges(fields: dict[str, Field]) -> list[int]:
    """The first microversion of every band, and the newest of all."""
    points = {1, NEWEST}
    for field in fields.values():
        for span in (*field.spans, *field.required):
            points.update((span.first, span.last + 1))
    return sorted(point for point in points if 1 <= point <= NEWEST)


def keys_in(answer: Any, fields: dict[str, Field]) -> dict[str, list[Any]]:
    """Dotted path -> the values found there; a name that varies becomes ``*``."""
    found: dict[str, list[Any]] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                exact = f"{path}.{name}" if path else name
                star = f"{path}.*" if path else "*"
                at = exact if exact in fields or star not in fields else star
                found.setdefault(at, []).append(inner)
                walk(inner, at)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, f"{path}[]")

    walk(answer, "")
    return found


def check_answer(route: str, version: int, answers: list[Any], absent: frozenset[str] = frozenset()) -> None:
    """The keys of all ``answers`` together are exactly those that exist in this version.

    ``absent``: keys that this cloud never shows, with all below them; each required key is in each answer
    whose parent is there.
    """
    fields = facts("response")[route]
    expected = {
        key
        for key, field in fields.items()
        if field.exists(version) and not any(key == gone or key.startswith(gone) for gone in absent)
    }
    seen: set[str] = set()
    for answer in answers:
        found = keys_in(answer, fields)
        seen |= set(found)
        for key, values in found.items():
            if key in fields:
                wrong = [value for value in values if not fields[key].fits(value)]
                assert not wrong, f"{route} at 2.{version}: {key} is {wrong[0]!r}"
        missing = {
            key
            for key in expected
            if fields[key].needed(version) and key not in found and _parent_there(key, found)
        }
        assert not missing, f"{route} at 2.{version} lacks {sorted(missing)}"
    assert seen == expected, f"{route} at 2.{version}: {sorted(seen ^ expected)}"


def _parent_there(key: str, found: dict[str, list[Any]]) -> bool:
    parent, _, _ = key.rpartition(".")
    if not parent:
        return True
    if parent.endswith("[]"):
        return any(value for value in found.get(parent[:-2], []) if value)
    return any(isinstance(value, dict) for value in found.get(parent, []))
