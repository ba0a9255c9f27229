"""Weighers: which of the hosts that will do is the best.  Names, options and signs are Nova's.

Each gives a raw figure for every host, the higher the better; ``weighing`` makes them comparable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.scheduler.columns import Columns, Mask, Real
from kilonova.scheduler.filters.neighbours import SOFT_AFFINITY, SOFT_ANTI_AFFINITY
from kilonova.scheduler.question import Question

Raw = Callable[[Question], Real | None]
"""A figure for every row; None: all hosts are alike."""


@dataclass(frozen=True, slots=True)
class Weigher:
    """``multiplier`` is the option, and the key in the metadata of aggregates that goes before it."""

    name: str
    multiplier: str
    raw: Raw


def _free(resource: str, *, physical: bool) -> Raw:
    def raw(question: Question) -> Real | None:
        stock = question.columns.stock.get(resource)
        if stock is None:
            return None
        return ((stock.physical if physical else stock.capacity) - stock.used).astype(np.float64)

    return raw


def _column(name: str, sign: int = 1) -> Raw:
    def raw(question: Question) -> Real | None:
        column = getattr(question.columns, name)
        return (sign * column).astype(np.float64) if column.any() else None

    return raw


def _members(policy: str, sign: int) -> Raw:
    """How many servers of the group are on each host."""

    def raw(question: Question) -> Real | None:
        group = question.request.group
        if group is None or group.policy != policy or not group.hosts:
            return None
        result = np.zeros(question.columns.room, np.float64)
        for compute_id, count in group.hosts.items():
            row = question.columns.row_of_provider.get(compute_id)
            if row is not None:
                result[row] = sign * count
        return result

    return raw


def _metrics(question: Question) -> Real | None:
    """The weighted sum of what monitors tell; ``weight_of_unavailable`` where one is missing."""
    options, columns = question.options, question.columns
    if not options.metrics_weights:
        return None
    total = np.zeros(columns.room, np.float64)
    for name, ratio in options.metrics_weights.items():
        total += ratio * columns.metrics.get(name, np.full(columns.room, np.nan))
    return np.where(np.isnan(total), options.metrics_weight_of_unavailable, total)


def _same_cell(question: Question) -> Real | None:
    """Hosts of the cell that the server is in, where others will do as well."""
    columns, own = question.columns, question.request.own_cell
    if own is None:
        return None
    result = np.zeros(columns.room, np.float64)
    for row in columns.row_of.values():
        result[row] = (columns.record(row).cell_uuid or FIRST_CELL) == own
    return result


def _image_properties(question: Question) -> Real | None:
    """How many servers each host has whose images are like this one's, property by property."""
    weights, columns = question.options.image_props_weights, question.columns
    if not columns.images:
        return None
    result = np.zeros(columns.room, np.float64)
    for name, value in question.request.image_properties.items():
        ratio = weights.get(name, 0.0) if weights else 1.0
        counts = columns.images.get((name, value))
        if ratio and counts is not None:
            result += ratio * counts
    return result


WEIGHERS: tuple[Weigher, ...] = (
    Weigher("RAMWeigher", "ram_weight_multiplier", _free("MEMORY_MB", physical=True)),
    Weigher("CPUWeigher", "cpu_weight_multiplier", _free("VCPU", physical=False)),
    Weigher("DiskWeigher", "disk_weight_multiplier", _free("DISK_GB", physical=True)),
    Weigher("MetricsWeigher", "metrics_weight_multiplier", _metrics),
    Weigher("IoOpsWeigher", "io_ops_weight_multiplier", _column("io_ops")),
    Weigher("PCIWeigher", "pci_weight_multiplier", _column("pci_free", -1)),
    Weigher("ServerGroupSoftAffinityWeigher", "soft_affinity_weight_multiplier", _members(SOFT_AFFINITY, 1)),
    Weigher(
        "ServerGroupSoftAntiAffinityWeigher",
        "soft_anti_affinity_weight_multiplier",
        _members(SOFT_ANTI_AFFINITY, -1),
    ),
    Weigher("BuildFailureWeigher", "build_failure_weight_multiplier", _column("failed_builds", -1)),
    Weigher("CrossCellWeigher", "cross_cell_move_weight_multiplier", _same_cell),
    Weigher(
        "HypervisorVersionWeigher", "hypervisor_version_weight_multiplier", _column("hypervisor_version")
    ),
    Weigher("NumInstancesWeigher", "num_instances_weight_multiplier", _column("instances")),
    Weigher("ImagePropertiesWeigher", "image_props_weight_multiplier", _image_properties),
)


def overrides(columns: Columns, key: str) -> tuple[Mask, Real]:
    """The hosts for which an aggregate has a multiplier of its own, and the lowest of these."""
    lowest = np.full(columns.room, np.inf)
    for aggregate in columns.aggregates:
        try:
            value = float(aggregate.metadata[key])
        except (KeyError, ValueError):  # what is no number does not count, as in Nova
            continue
        members = columns.members(aggregate)
        lowest[members] = np.minimum(lowest[members], value)
    return np.isfinite(lowest), lowest
