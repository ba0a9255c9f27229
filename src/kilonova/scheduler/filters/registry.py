"""Which filters are asked, by the names of ``enabled_filters``."""

from __future__ import annotations

import importlib

from kilonova.errors import Failed
from kilonova.scheduler.filters import (
    aggregates,
    capabilities,
    given,
    image,
    load,
    neighbours,
    provision,
    query,
    service,
)
from kilonova.scheduler.nova_conf import ALL_FILTERS
from kilonova.scheduler.options import Options
from kilonova.scheduler.question import Filter

_CHOSEN: tuple[Filter, ...] = (
    service.ALL_HOSTS,
    service.COMPUTE,
    *capabilities.CAPABILITIES,
    image.IMAGE_PROPERTIES,
    image.ISOLATED_HOSTS,
    neighbours.APART,
    neighbours.TOGETHER,
    neighbours.DIFFERENT_HOST,
    neighbours.SAME_HOST,
    neighbours.NEAR,
    aggregates.EXTRA_SPECS,
    aggregates.IMAGE_ISOLATION,
    aggregates.TENANCY,
    aggregates.TYPE_AFFINITY,
    load.IO,
    load.AGGREGATE_IO,
    load.NUM_INSTANCES,
    load.AGGREGATE_NUM_INSTANCES,
    load.METRICS,
    query.JSON,
)
FIRST: tuple[Filter, ...] = (
    service.RETRY,
    service.IGNORED,
    service.REQUESTED,
    service.CELL,
    service.ZONE,
    provision.TRAITS,
    provision.ISOLATED_AGGREGATES,
    provision.TENANT_AGGREGATES,
)
LAST: tuple[Filter, ...] = (provision.PLACEMENT, provision.CAPACITY, given.PCI, given.NUMA)
"""What is not the operator's choice: in Nova it is placement that answers these.  Room comes last: that a
host is disabled says more than that it is full as well."""

FORCED: tuple[Filter, ...] = (
    service.RETRY,
    service.IGNORED,
    service.CELL,
    service.COMPUTE,
    provision.PLACEMENT,
    provision.CAPACITY,
    given.PCI,
    given.NUMA,
)
"""zone:host:node is an administrator's order: only what is impossible stands against it."""

GONE = frozenset(
    {"AvailabilityZoneFilter", "RetryFilter", "RamFilter", "CoreFilter", "DiskFilter", "AggregateRamFilter"}
    | {
        given.PCI.name,
        given.NUMA.name,
        "AggregateCoreFilter",
        "AggregateDiskFilter",
        "ExactRamFilter",
        "ExactCoreFilter",
        "ExactDiskFilter",
    }
)
"""Nova's names for what is always asked here; they may stay in a file of options."""


def known() -> dict[str, tuple[Filter, ...]]:
    """By name."""
    found: dict[str, tuple[Filter, ...]] = {}
    for each in _CHOSEN:
        found[each.name] = (*found.get(each.name, ()), each)
    return found


def filters_of(options: Options) -> tuple[Filter, ...]:
    """All that a request is asked, in order: the enabled ones as they are listed, between what always is.

    Raises Failed for a name that is not known, or not available.
    """
    available = _available(options)
    chosen: list[Filter] = []
    for name in options.enabled_filters:
        short = name.rpartition(".")[2]
        if short in GONE:
            continue
        if name not in available and short not in available:
            raise Failed(
                f"[filter_scheduler]enabled_filters: there is no '{name}' among the available filters: "
                f"{', '.join(sorted(available))}."
            )
        chosen += available.get(name) or available[short]
    return (*FIRST, *chosen, *LAST)


def _available(options: Options) -> dict[str, tuple[Filter, ...]]:
    ours = known()
    found: dict[str, tuple[Filter, ...]] = {}
    for name in options.available_filters:
        if name == ALL_FILTERS:
            found.update(ours)
        elif name.startswith("nova.scheduler.filters."):
            short = name.rpartition(".")[2]
            if short not in ours and short not in GONE:
                raise Failed(f"[filter_scheduler]available_filters: there is no filter '{short}'.")
            found[short] = ours.get(short, ())
        else:
            found[name.rpartition(".")[2]] = (own(name),)
    return found


def own(name: str) -> Filter:
    """An operator's own filter: an object in a module that can be imported.  Raises Failed."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise Failed(f"[filter_scheduler]available_filters: '{name}' cannot be loaded: {error}.") from error
    if not isinstance(found, Filter):
        raise Failed(
            f"[filter_scheduler]available_filters: '{name}' is no kilonova.scheduler.question.Filter."
        )
    return found
