"""Hosts that are out of service, were tried, or are not those that were asked for."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from kilonova.db.cell_mappings import FIRST_CELL
from kilonova.scheduler.columns import Mask
from kilonova.scheduler.question import Filter, Question, always


def _all_but(question: Question, names: dict[str, str]) -> Mask:
    mask = np.ones(question.columns.room, np.bool_)
    for name in names:
        row = question.columns.row_of.get(name)
        if row is not None:
            mask[row] = False
    return mask


def _host(question: Question, row: int) -> str:
    return question.columns.record(row).host


RETRY = Filter(
    "RetryFilter",
    concerns=lambda question: tuple(question.request.tried) or None,
    passes=lambda question, among: _all_but(question, question.request.tried),
    why=lambda question, row: f"it failed there: {question.request.tried[_host(question, row)]}",
)

IGNORED = Filter(
    "IgnoredHosts",
    concerns=lambda question: tuple(question.request.ignored) or None,
    passes=lambda question, among: _all_but(question, question.request.ignored),
    why=lambda question, row: question.request.ignored[_host(question, row)],
)


def _in_cells(question: Question, among: Mask) -> Mask:
    mask, columns, cells = np.zeros(question.columns.room, np.bool_), question.columns, question.request.cells
    for row in columns.row_of.values():
        mask[row] = cells is None or (columns.record(row).cell_uuid or FIRST_CELL) in cells
    return mask


CELL = Filter(
    "Cell",
    concerns=lambda question: question.request.cells,
    passes=_in_cells,
    why=lambda question, row: "it is in a cell to which the server may not go",
    fixed=True,
)


def _requested(question: Question) -> Hashable | None:
    wanted = (question.request.requested_host, question.request.requested_node)
    return wanted if any(wanted) else None


def _is_requested(question: Question, among: Mask) -> Mask:
    mask = np.zeros(question.columns.room, np.bool_)
    host, node = question.request.requested_host, question.request.requested_node
    rows = question.columns.row_of.values() if not host else [question.columns.row_of.get(host)]
    for row in rows:
        if row is not None and node in (None, "", question.columns.record(row).hypervisor_hostname):
            mask[row] = True
    return mask


def _not_requested(question: Question, row: int) -> str:
    host, node = question.request.requested_host, question.request.requested_node
    if host and host != _host(question, row):
        return f"the host '{host}' was asked for"
    return f"the node '{node}' was asked for"


REQUESTED = Filter("RequestedHost", _requested, _is_requested, _not_requested, fixed=True)


def _serves(question: Question, among: Mask) -> Mask:
    columns = question.columns
    alive = columns.alive(question.now, question.options.service_down_time)
    return alive & ~(columns.disabled | columns.forced_down)


def _does_not_serve(question: Question, row: int) -> str:
    host = question.columns.record(row)
    if host.disabled:
        return f"disabled ({host.disabled_reason or 'no reason given'})"
    return "forced down" if host.forced_down else "its agent does not answer"


COMPUTE = Filter("ComputeFilter", always, _serves, _does_not_serve)


def _in_zone(question: Question, among: Mask) -> Mask:
    code = question.columns.zones.get(str(question.request.availability_zone), -1)
    mask: Mask = question.columns.zone == code
    return mask


ZONE = Filter(
    "AvailabilityZoneFilter",
    concerns=lambda question: question.request.availability_zone,
    passes=_in_zone,
    why=lambda question, row: (
        f"in zone '{question.columns.zone_of(row)}', not '{question.request.availability_zone}'"
    ),
    fixed=True,
)

ALL_HOSTS = Filter(
    "AllHostsFilter",
    concerns=lambda question: None,
    passes=lambda question, among: among,
    why=lambda question, row: "",
    fixed=True,
)
