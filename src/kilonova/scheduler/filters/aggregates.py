"""Filters that go by the metadata of host aggregates.

Where several aggregates of a host have a key, the words of all their values count.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kilonova.scheduler.columns import Mask
from kilonova.scheduler.comparison import matches
from kilonova.scheduler.question import Filter, Question

SCOPE = "aggregate_instance_extra_specs"
INSTANCE_TYPE = "instance_type"
TENANT = "filter_tenant_id"


def _having(question: Question, found: Iterable[Mask]) -> Mask:
    mask = np.zeros(question.columns.room, np.bool_)
    for each in found:
        mask |= each
    return mask


# ---- AggregateInstanceExtraSpecsFilter ----


def _specs(question: Question) -> tuple[tuple[str, str], ...]:
    """Extra specs with the filter's own scope, or with none."""
    found = []
    for key, value in question.request.extra_specs.items():
        scope, colon, name = key.partition(":")
        if not colon or scope == SCOPE:
            found.append((name if colon else key, value))
    return tuple(sorted(found))


def _specs_match(question: Question, among: Mask) -> Mask:
    mask = np.ones(question.columns.room, np.bool_)
    for key, wanted in _specs(question):
        good = (
            question.columns.members(aggregate)
            for aggregate, words in question.aggregate_values(key)
            if any(matches(word, wanted) for word in words)
        )
        mask &= _having(question, good)
    return mask


def _specs_differ(question: Question, row: int) -> str:
    own = question.aggregates_of(row)
    for key, wanted in _specs(question):
        words = _words(own, key)
        if not any(matches(word, wanted) for word in words):
            have = ", ".join(f"'{word}'" for word in words) or "nothing"
            return f"its aggregates have {have} for {key}, the flavor asks for '{wanted}'"
    return "its aggregates have not what the flavor asks for"


def _words(aggregates: Iterable[object], key: str) -> list[str]:
    found: list[str] = []
    for aggregate in aggregates:
        metadata: dict[str, str] = aggregate.metadata  # type: ignore[attr-defined]
        found += [word.strip() for word in metadata.get(key, "").split(",") if key in metadata]
    return found


EXTRA_SPECS = Filter(
    "AggregateInstanceExtraSpecsFilter",
    lambda question: _specs(question) or None,
    _specs_match,
    _specs_differ,
    fixed=True,
)


# ---- AggregateImagePropertiesIsolation ----


def _properties(question: Question) -> tuple[tuple[str, str], ...]:
    """Properties of the image that an aggregate may speak of."""
    namespace = question.options.aggregate_image_properties_isolation_namespace
    prefix = namespace + question.options.aggregate_image_properties_isolation_separator if namespace else ""
    return tuple(
        sorted(
            (key, value) for key, value in question.request.image_properties.items() if key.startswith(prefix)
        )
    )


def _properties_match(question: Question, among: Mask) -> Mask:
    mask = np.ones(question.columns.room, np.bool_)
    for key, value in _properties(question):
        found = question.aggregate_values(key)
        speak = _having(question, (question.columns.members(one) for one, _ in found))
        good = _having(question, (question.columns.members(one) for one, words in found if value in words))
        mask &= ~speak | good
    return mask


def _properties_differ(question: Question, row: int) -> str:
    own = question.aggregates_of(row)
    for key, value in _properties(question):
        words = _words(own, key)
        if words and value not in words:
            return f"its aggregates are for images with {key} {', '.join(words)}, not {value}"
    return "its aggregates are for other images"


IMAGE_ISOLATION = Filter(
    "AggregateImagePropertiesIsolation",
    lambda question: _properties(question) or None,
    _properties_match,
    _properties_differ,
    fixed=True,
)


# ---- AggregateMultiTenancyIsolation ----


def _tenants_match(question: Question, among: Mask) -> Mask:
    closed, own = [], []
    for aggregate in question.columns.aggregates:
        words = tenants(aggregate.metadata)
        if words:
            members = question.columns.members(aggregate)
            closed.append(members)
            if question.request.project_id in words:
                own.append(members)
    return ~_having(question, closed) | _having(question, own)


def tenants(metadata: dict[str, str]) -> list[str]:
    """The projects that an aggregate is for; Nova takes any key that begins with filter_tenant_id."""
    return [
        word.strip() for key, value in metadata.items() if key.startswith(TENANT) for word in value.split(",")
    ]


TENANCY = Filter(
    "AggregateMultiTenancyIsolation",
    lambda question: question.request.project_id,
    _tenants_match,
    lambda question, row: "its aggregates are for other projects",
    fixed=True,
)


# ---- AggregateTypeAffinityFilter ----


def _types_match(question: Question, among: Mask) -> Mask:
    found = question.aggregate_values(INSTANCE_TYPE)
    speak = _having(question, (question.columns.members(one) for one, _ in found))
    name = question.request.flavor
    good = _having(question, (question.columns.members(one) for one, words in found if name in words))
    return ~speak | good


TYPE_AFFINITY = Filter(
    "AggregateTypeAffinityFilter",
    lambda question: question.request.flavor or None,
    _types_match,
    lambda question, row: (
        "its aggregates are for the flavors " + ", ".join(_words(question.aggregates_of(row), INSTANCE_TYPE))
    ),
    fixed=True,
)
