"""NUMATopologyFilter and PciPassthroughFilter: what a host gives away one by one.

These are asked whether they are enabled or not: what they refuse the claim would refuse, later.
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec
import numpy as np

from kilonova.model.host_resources import Limits, Wanted
from kilonova.scheduler.columns import Columns, Mask
from kilonova.scheduler.question import Filter, Question


def limits_of(columns: Columns, row: int) -> Limits:
    """How far the cells of a host may be over-committed: as far as the host."""
    cpu_ratio, ram_ratio = _ratios(columns, row)
    return Limits(cpu_ratio=cpu_ratio, ram_ratio=ram_ratio)


def _ratios(columns: Columns, row: int) -> tuple[float | None, float | None]:
    provision = columns.provisions[row]
    if provision is None:
        return None, None
    cpus, memory = provision.inventories.get("VCPU"), provision.inventories.get("MEMORY_MB")
    return None if cpus is None else cpus.allocation_ratio, (
        None if memory is None else memory.allocation_ratio
    )


def _devices(question: Question) -> Wanted:
    """The devices alone, wherever they are."""
    return Wanted(pci=question.request.special.pci)


def _reason(question: Question, row: int, wanted: Wanted) -> str | None:
    assert question.holdings is not None
    compute_id = question.columns.record(row).compute_id
    return question.holdings.answers(wanted).reason(compute_id, *_ratios(question.columns, row))


def _fitting(question: Question, among: Mask, wanted: Wanted) -> Mask:
    assert question.holdings is not None
    columns, answers = question.columns, question.holdings.answers(wanted)
    mask = np.zeros(columns.room, np.bool_)
    mask[
        [
            row
            for row in np.flatnonzero(among).tolist()
            if answers.reason(columns.record(row).compute_id, *_ratios(columns, row)) is None
        ]
    ] = True
    return mask


def _wants_devices(question: Question) -> Hashable | None:
    return True if question.request.special.pci else None


def _wants_cells(question: Question) -> Hashable | None:
    return True if question.request.special.numa is not None else None


PCI = Filter(
    "PciPassthroughFilter",
    _wants_devices,
    lambda question, among: _fitting(question, among, _devices(question)),
    lambda question, row: str(_reason(question, row, _devices(question))),
)
NUMA = Filter(
    "NUMATopologyFilter",
    _wants_cells,
    lambda question, among: _fitting(question, among, question.request.special),
    lambda question, row: str(_reason(question, row, question.request.special)),
)


def with_limits(wanted: Wanted, columns: Columns, row: int) -> Wanted:
    """What a claim there asks for."""
    return msgspec.structs.replace(wanted, limits=limits_of(columns, row))
