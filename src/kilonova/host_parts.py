"""The parts of this host, as the settings want them: hypervisor, plugger, and what wires the ports."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from kilonova.clock import Clock
from kilonova.db.engine import Database
from kilonova.errors import Failed
from kilonova.model.host import HostReport, Inventory
from kilonova.model.port import Vif
from kilonova.settings import Settings
from kilonova.state_dir import StateDir
from kilonova.vif.null import NullPlugger
from kilonova.vif.plugger import VifPlugger
from kilonova.virt.driver import Driver
from kilonova.virt.fake.driver import FakeDriver

if TYPE_CHECKING:
    from kilonova.services.network.builtin import BuiltinNetwork


async def _nothing() -> None:
    return None


@dataclass
class HostParts:
    """What an agent works with.  ``start`` and ``stop`` are those of what wires the ports."""

    driver: Driver
    plugger: VifPlugger
    details: dict[str, str]
    start: Callable[[], Awaitable[None]] = _nothing
    stop: Callable[[], Awaitable[None]] = _nothing

    def completed(self, report: HostReport) -> HostReport:
        """The hypervisor's report, with what the network service wants to know of the host."""
        return msgspec.structs.replace(report, details={**report.details, **self.details})


def host_name(settings: Settings) -> str:
    return settings.text("host") or socket.gethostname()


async def host_parts(
    settings: Settings, state: StateDir, clock: Clock, network: BuiltinNetwork, db: Database
) -> HostParts:
    """Raises Failed for a driver that is not installed."""
    if settings.driver == "fake":
        return _fake(settings, state, clock, network)
    raise Failed("The libvirt driver has not landed yet: use --driver fake.")


def _fake(settings: Settings, state: StateDir, clock: Clock, network: BuiltinNetwork) -> HostParts:
    host = host_name(settings)

    async def plugged(vif: Vif) -> None:
        await network.port_up(vif.port_id, host)

    capacity = {
        "VCPU": Inventory(total=settings.number("vcpus", "fake")),
        "MEMORY_MB": Inventory(total=settings.number("memory_mb", "fake")),
        "DISK_GB": Inventory(total=settings.number("disk_gb", "fake")),
    }
    driver = FakeDriver(
        host,
        state.compute_id(),
        state.private("agent"),
        clock,
        capacity,
        delay=settings.real("delay", "fake"),
        host_ip=settings.text("my_ip"),
    )
    return HostParts(driver, NullPlugger(plugged), {"datapath_type": "netdev"})
