"""What placement has: room, traits, and what several providers of a host give together."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from kilonova.scheduler.columns import Mask
from kilonova.scheduler.question import Filter, Question

UNITS = {"VCPU": "vCPUs", "PCPU": "dedicated CPUs", "MEMORY_MB": "MiB of memory", "DISK_GB": "GiB of disk"}


def _alone(question: Question) -> Hashable | None:
    """One provider answers for the host."""
    return None if question.placed is not None else True


def _has_room(question: Question, among: Mask) -> Mask:
    columns = question.columns
    mask: Mask | None = None
    for name, amount in question.request.wanted.together().items():
        stock = columns.stock.get(name)
        if stock is None:
            return np.zeros(columns.room, np.bool_)
        fits = (stock.used + amount <= stock.capacity) & stock.allowed(amount)
        mask = fits if mask is None else mask & fits
    return among if mask is None else mask


def _no_room(question: Question, row: int) -> str:
    provision = question.columns.provisions[row]
    if provision is None or not provision.inventories:
        return "placement has no inventory of it"
    for name, amount in question.request.wanted.together().items():
        unit = UNITS.get(name, name)
        inventory = provision.inventories.get(name)
        if inventory is None:
            return f"it has no {unit}"
        if amount > inventory.max_unit:
            return f"{amount} {unit} wanted, one server may have {inventory.max_unit} at most"
        if amount < inventory.min_unit or amount % inventory.step_size:
            return (
                f"{amount} {unit} wanted, one server may have {inventory.min_unit} or more, in steps of "
                f"{inventory.step_size}"
            )
        free = int(question.columns.stock[name].free()[row])
        if amount > free:
            return f"{amount} {unit} wanted, {max(free, 0)} free"
    return "placement has no room there"


CAPACITY = Filter("Capacity", _alone, _has_room, _no_room)


def _traits(question: Question) -> tuple[frozenset[str], frozenset[str]]:
    """Required, forbidden; of all groups, since one provider answers for all."""
    wanted = question.request.wanted
    groups = (wanted.root, *wanted.groups.values())
    required = frozenset(name for group in groups for name in group.required)
    return required, frozenset(name for group in groups for name in group.forbidden)


def _concerned(question: Question) -> Hashable | None:
    found = _traits(question)
    return found if any(found) and question.placed is None else None


def _has_traits(question: Question, among: Mask) -> Mask:
    required, forbidden = _traits(question)
    columns = question.columns
    mask = np.ones(columns.room, np.bool_)
    for name in required:
        found = columns.traits.get(name)
        mask &= False if found is None else found
    for name in forbidden:
        found = columns.traits.get(name)
        if found is not None:
            mask &= ~found
    return mask


def _wrong_traits(question: Question, row: int) -> str:
    required, forbidden = _traits(question)
    provision = question.columns.provisions[row]
    has = frozenset() if provision is None else provision.traits
    missing = sorted(required - has)
    if missing:
        return f"it lacks the trait {missing[0]}"
    return f"it has the forbidden trait {min(forbidden & has)}"


TRAITS = Filter("Traits", _concerned, _has_traits, _wrong_traits, fixed=True)


def _in_candidates(question: Question, among: Mask) -> Mask:
    mask = np.zeros(question.columns.room, np.bool_)
    for compute_id in question.placed or ():
        row = question.columns.row_of_provider.get(compute_id)
        if row is not None:
            mask[row] = True
    return mask


PLACEMENT = Filter(
    "Placement",
    concerns=lambda question: None if question.placed is None else True,
    passes=_in_candidates,
    why=lambda question, row: "placement has nothing there (with what is below and beside it) that fits",
)


def _isolated(question: Question) -> Hashable | None:
    return _traits(question) if question.options.enable_isolated_aggregate_filtering else None


def _is_allowed(question: Question, among: Mask) -> Mask:
    """Aggregates with ``trait:NAME=required`` are for servers only that require all of these traits."""
    required, _ = _traits(question)
    mask = np.ones(question.columns.room, np.bool_)
    for aggregate in question.columns.aggregates:
        if not _traits_of_aggregate(aggregate.metadata) <= required:
            mask &= ~question.columns.members(aggregate)
    return mask


def _traits_of_aggregate(metadata: dict[str, str]) -> set[str]:
    return {
        key.removeprefix("trait:")
        for key, value in metadata.items()
        if key.startswith("trait:") and value == "required"
    }


def _not_allowed(question: Question, row: int) -> str:
    required, _ = _traits(question)
    for aggregate in question.aggregates_of(row):
        missing = _traits_of_aggregate(aggregate.metadata) - required
        if missing:
            return f"its aggregate {aggregate.name} is for servers that require {min(missing)}"
    return "its aggregate is for other servers"


ISOLATED_AGGREGATES = Filter("IsolatedAggregates", _isolated, _is_allowed, _not_allowed, fixed=True)


def _tenant(question: Question) -> Hashable | None:
    limited = question.options.limit_tenants_to_placement_aggregate
    return question.request.project_id if limited else None


def _own_aggregates(question: Question) -> list[Mask]:
    project = question.request.project_id
    return [
        question.columns.members(aggregate)
        for aggregate in question.columns.aggregates
        if any(
            key.startswith("filter_tenant_id") and value == project
            for key, value in aggregate.metadata.items()
        )
    ]


def _tenant_may(question: Question, among: Mask) -> Mask:
    own = _own_aggregates(question)
    if own:
        mask: Mask = np.logical_or.reduce(own)
        return mask
    required = question.options.placement_aggregate_required_for_tenants
    return np.full(question.columns.room, not required)


TENANT_AGGREGATES = Filter(
    "TenantAggregates",
    _tenant,
    _tenant_may,
    lambda question, row: f"it is in no aggregate of the project {question.request.project_id}",
    fixed=True,
)
