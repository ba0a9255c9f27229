"""How busy a host is: servers, operations that are heavy on its disks, and what its monitors measure."""

from __future__ import annotations

import numpy as np

from kilonova.scheduler.columns import Mask, Whole
from kilonova.scheduler.question import Filter, Question

IO_OPS, INSTANCES = "max_io_ops_per_host", "max_instances_per_host"


def limits(question: Question, key: str, *, of_aggregates: bool) -> Whole:
    """The limit of each host: the option's, or the lowest that an aggregate of it has."""
    columns = question.columns
    result = np.full(columns.room, getattr(question.options, key), np.int64)
    if not of_aggregates:
        return result
    lowest = np.full(columns.room, np.iinfo(np.int64).max, np.int64)
    for aggregate, words in question.aggregate_values(key):
        numbers = [int(word) for word in words if word.isdecimal() and len(word) < 18]
        if numbers:
            members = columns.members(aggregate)
            lowest[members] = np.minimum(lowest[members], min(numbers))
    return np.where(lowest == np.iinfo(np.int64).max, result, lowest)


def _load_filter(name: str, column: str, key: str, what: str, *, of_aggregates: bool) -> Filter:
    def passes(question: Question, among: Mask) -> Mask:
        limit = limits(question, key, of_aggregates=of_aggregates)
        have: Whole = getattr(question.columns, column)
        return have < limit

    def why(question: Question, row: int) -> str:
        limit = int(limits(question, key, of_aggregates=of_aggregates)[row])
        return (
            f"it has {int(getattr(question.columns, column)[row])} {what}, {limit} are the most it may have"
        )

    return Filter(name, lambda question: question.options.track_instance_changes or None, passes, why)


NUM_INSTANCES = _load_filter("NumInstancesFilter", "instances", INSTANCES, "servers", of_aggregates=False)
AGGREGATE_NUM_INSTANCES = _load_filter(
    "AggregateNumInstancesFilter", "instances", INSTANCES, "servers", of_aggregates=True
)
_HEAVY = "operations that keep its disks busy"
IO = _load_filter("IoOpsFilter", "io_ops", IO_OPS, _HEAVY, of_aggregates=False)
AGGREGATE_IO = _load_filter("AggregateIoOpsFilter", "io_ops", IO_OPS, _HEAVY, of_aggregates=True)


def _measured(question: Question, among: Mask) -> Mask:
    mask = np.ones(question.columns.room, np.bool_)
    for name in question.options.metrics_weights:
        found = question.columns.metrics.get(name)
        mask &= False if found is None else ~np.isnan(found)
    return mask


def _not_measured(question: Question, row: int) -> str:
    columns = question.columns
    missing = [
        name
        for name in question.options.metrics_weights
        if name not in columns.metrics or np.isnan(columns.metrics[name][row])
    ]
    return f"its monitors do not tell {', '.join(missing)}"


METRICS = Filter(
    "MetricsFilter",
    concerns=lambda question: tuple(question.options.metrics_weights) or None,
    passes=_measured,
    why=_not_measured,
)
