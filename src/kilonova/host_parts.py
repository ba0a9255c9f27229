"""The parts of this host, as the settings want them: hypervisor, plugger, and what wires the ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from kilonova.agent.agent import AgentOptions
from kilonova.agent.report import HostReports, Tell, host_reports
from kilonova.agent.transfer import transfer_options
from kilonova.clock import Clock
from kilonova.errors import Failed, KilonovaError
from kilonova.guest_metadata import GuestMetadata
from kilonova.l2agent.options import L2Options
from kilonova.l2agent.source import WiringSource
from kilonova.model.host import TUNNELING_IP, Inventory
from kilonova.model.port import Vif
from kilonova.periodic import Periodic, spacing
from kilonova.rpc.desk import Desk
from kilonova.settings import Settings
from kilonova.state_dir import StateDir
from kilonova.vif.null import NullPlugger
from kilonova.vif.plugger import VifPlugger
from kilonova.virt.driver import Driver
from kilonova.virt.fake.driver import FakeDriver
from kilonova.virt.fake.hardware import hardware_from

log = structlog.get_logger("kilonova.agent")


async def _nothing() -> None:
    return None


@dataclass
class HostParts:
    """What an agent works with; ``reports`` looks at what it has, ``stop`` ends what wires the ports."""

    driver: Driver
    plugger: VifPlugger
    reports: HostReports
    stop: Callable[[], Awaitable[None]] = _nothing

    def keep_reports(self, periodic: Periodic, settings: Settings, tell: Tell) -> None:
        """Have told what is new of the host: what it has, and what its monitors see."""
        interval = spacing(settings.number("update_resources_interval"))
        periodic.every(interval, "resources", lambda: self.reports.tell_news(tell))

    def keep_image_cache(self, periodic: Periodic, settings: Settings) -> None:
        """Have images removed that nobody has used for long."""
        age = settings.number("remove_unused_original_minimum_age_seconds", "image_cache")
        interval = spacing(settings.number("manager_interval", "image_cache"))
        if not settings.flag("remove_unused_base_images", "image_cache"):
            interval = None
        periodic.every(interval, "image cache", lambda: self.driver.remove_unused_images(age))


def host_name(settings: Settings) -> str:
    return settings.text("host") or socket.gethostname()


def agent_options(settings: Settings) -> AgentOptions:
    """The agent's own part of the settings."""
    heard = settings.flag("handle_virt_lifecycle_events", "workarounds")
    if not heard and spacing(settings.number("sync_power_state_interval")) is None:
        log.warning(
            "nobody notices what guests do by themselves: [workarounds]handle_virt_lifecycle_events is false "
            "and [DEFAULT]sync_power_state_interval negative"
        )
    return AgentOptions(
        max_concurrent_builds=settings.number("max_concurrent_builds"),
        hears_events=heard,
        live_plug_tries=settings.number("live_migration_retry_count"),
        transfer=transfer_options(settings),
    )


def l2_options(settings: Settings, state: StateDir) -> L2Options:
    """The layer-2 agent's part of the settings."""
    return L2Options(
        host=host_name(settings),
        directory=state.searchable("l2agent"),
        bridge=settings.text("integration_bridge", "ovs"),
        datapath_type=settings.text("datapath_type", "ovs"),
        dhcp_domain=settings.text("dhcp_domain"),
        local_ip=settings.text("local_ip", "ovs"),
        vxlan_port=settings.number("vxlan_udp_port", "agent"),
    )


async def host_parts(
    settings: Settings, state: StateDir, clock: Clock, source: WiringSource, desk: Desk
) -> HostParts:
    """The parts, with the layer-2 agent at work; ``source`` and ``desk`` are the cloud as this host sees it.

    Raises Failed for a driver that is not installed or a host that cannot run guests.
    """
    if settings.driver == "fake":
        return _fake(settings, state, clock, source)
    return await _libvirt(settings, state, clock, source, desk)


def _fake(settings: Settings, state: StateDir, clock: Clock, source: WiringSource) -> HostParts:
    host = host_name(settings)

    async def plugged(vif: Vif) -> None:
        await source.port_up(vif.port_id, host)

    capacity = {
        "VCPU": Inventory(total=settings.number("vcpus", "fake")),
        "MEMORY_MB": Inventory(total=settings.number("memory_mb", "fake")),
        "DISK_GB": Inventory(total=settings.number("disk_gb", "fake")),
    }
    hardware = hardware_from(settings)
    driver = FakeDriver(
        host,
        state.compute_id(),
        state.private("agent"),
        clock,
        hardware.capacity(capacity),
        delay=settings.real("delay", "fake"),
        host_ip=settings.text("my_ip"),
        hardware=hardware,
    )
    reports = host_reports(driver, clock, settings)
    reports.details = {"datapath_type": "netdev"}
    return HostParts(driver, NullPlugger(plugged), reports)


async def _libvirt(
    settings: Settings, state: StateDir, clock: Clock, source: WiringSource, desk: Desk
) -> HostParts:
    """Imports what only real hosts need: a fake cloud has neither libvirt nor Open vSwitch."""
    if os.geteuid() != 0:
        raise Failed("Real guests need root (taps, bridges, namespaces): run as root, or use --driver fake.")
    try:
        from kilonova.virt.libvirt.driver import LibvirtDriver
    except ImportError as error:
        raise Failed(f"The libvirt driver is not installed: {error}. Run `make host`.") from error
    from kilonova.l2agent.agent import L2Agent
    from kilonova.l2agent.ovsdb import Ovsdb
    from kilonova.vif.ovs import OsVifPlugger
    from kilonova.virt.libvirt.options import options_from

    connection = settings.text("ovsdb_connection", "ovs")
    instances = state.searchable("instances")
    volumes = settings.text("directory", "volume")
    driver = LibvirtDriver(
        options_from(settings),
        host_name(settings),
        state.compute_id(),
        instances,
        clock,
        Path(volumes) if volumes else state.path / "volumes",  # as this process' own service has them
    )
    reports = host_reports(driver, clock, settings)
    metadata = GuestMetadata(desk, settings)
    wiring = L2Agent(source, Ovsdb(connection, clock), clock, l2_options(settings, state), metadata.serve)
    try:
        await wiring.start()
    except KilonovaError as error:
        raise Failed(f"{error} `tools/host-daemons.sh up` starts what a host needs.") from error
    datapath = wiring.datapath_type
    reports.details = {"datapath_type": datapath}
    if local_ip := settings.text("local_ip", "ovs"):
        reports.details[TUNNELING_IP] = local_ip
    plugger = OsVifPlugger(connection, datapath_type=datapath)

    async def stop() -> None:
        await wiring.stop()
        await plugger.close()

    return HostParts(driver, plugger, reports, stop)
