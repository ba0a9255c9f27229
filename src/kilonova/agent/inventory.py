"""What a host's driver has found, as the operator wants it given out: reserves and allocation ratios.

The rules are Nova's.  A ratio that is set goes before everything; one that is not is what placement has, and
the initial one where placement has nothing yet.  A ratio of 0 counts as not set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from kilonova.errors import Failed
from kilonova.model.host import HostReport, Inventory

if TYPE_CHECKING:
    from kilonova.settings import Settings

PROCESSORS = ("VCPU", "PCPU")
NEEDED = ("MEMORY_MB", "DISK_GB")


class StockOptions(msgspec.Struct, frozen=True, kw_only=True):
    """By resource class; what is not in ``ratios`` is not set, reserves are in the units of the class.

    Without an initial ratio it is the driver's.
    """

    ratios: dict[str, float] = {}
    initial: dict[str, float] = {}
    reserved: dict[str, int] = {}


def stock_options(settings: Settings) -> StockOptions:
    """The operator's part of what a host has."""
    words = {"VCPU": "cpu", "MEMORY_MB": "ram", "DISK_GB": "disk"}
    given = {name: settings.options["DEFAULT"][f"{word}_allocation_ratio"] for name, word in words.items()}
    return StockOptions(
        ratios={name: float(str(ratio)) for name, ratio in given.items() if ratio},
        initial={name: settings.real(f"initial_{word}_allocation_ratio") for name, word in words.items()},
        reserved={
            "VCPU": settings.number("reserved_host_cpus"),
            "MEMORY_MB": settings.number("reserved_host_memory_mb"),
            "DISK_GB": -(-settings.number("reserved_host_disk_mb") // 1024),
        },
    )


def as_given_out(report: HostReport, options: StockOptions) -> HostReport:
    """The report of a driver with the operator's reserves and ratios on the compute node's own inventories.

    Raises Failed for a driver's view in which something is missing.
    """
    _check(report)
    # A disk below one GiB is said to be none, for which placement has no record.
    some = {name: each for name, each in report.inventories.items() if each.total > 0}
    known = [name for name in ("VCPU", *NEEDED) if name in some]
    changed = {name: _given_out(name, some[name], options) for name in known}
    return msgspec.structs.replace(
        report,
        inventories={**some, **changed},
        initial_ratios=tuple(name for name in known if name not in options.ratios),
    )


def _given_out(name: str, found: Inventory, options: StockOptions) -> Inventory:
    ratio = options.ratios.get(name) or options.initial.get(name, found.allocation_ratio)
    reserved = min(max(found.reserved, options.reserved.get(name, 0)), found.total)
    return msgspec.structs.replace(found, reserved=reserved, allocation_ratio=ratio)


def _check(report: HostReport) -> None:
    missing = [name for name in NEEDED if name not in report.inventories]
    if not any(name in report.inventories for name in PROCESSORS):
        missing.insert(0, " or ".join(PROCESSORS))
    if missing:
        raise Failed(
            f"The driver of host '{report.host}' does not say how much it has of {', '.join(missing)}: "
            "nothing can be placed there."
        )
