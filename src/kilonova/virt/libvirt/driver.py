"""The hypervisor of real guests: QEMU through libvirt."""

from __future__ import annotations

import asyncio
import functools
import os
from pathlib import Path

import structlog

from kilonova.clock import Clock
from kilonova.errors import Failed, HostFault, NotFound
from kilonova.model.host import HostReport, ProviderReport
from kilonova.model.numa import HostTopology
from kilonova.model.port import Vif
from kilonova.model.states import Power
from kilonova.model.volume import Attachment
from kilonova.rpc.messages import Diagnostics, GuestSpec
from kilonova.rpc.moves import ArrivalFacts, LiveOutcome, LivePlan, LiveWish, Located, Progress
from kilonova.threads import Threads
from kilonova.virt.driver import ImageSource, PowerEvent
from kilonova.virt.libvirt import console, hot_plug
from kilonova.virt.libvirt.capabilities import Capabilities, Machine
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.cpu import choose_cpu
from kilonova.virt.libvirt.diagnostics import diagnostics, wanted
from kilonova.virt.libvirt.disks import CONSOLE, GuestFiles
from kilonova.virt.libvirt.domains import Domains
from kilonova.virt.libvirt.hardware import Hardware, choose, machine_type
from kilonova.virt.libvirt.host_topology import host_topology
from kilonova.virt.libvirt.hot_plug import HotPlug
from kilonova.virt.libvirt.image_cache import ImageCache
from kilonova.virt.libvirt.live import LiveMigration
from kilonova.virt.libvirt.options import LibvirtOptions
from kilonova.virt.libvirt.parked import ParkedFiles
from kilonova.virt.libvirt.pci import pci_devices
from kilonova.virt.libvirt.placement import Placement, check_devices, placement
from kilonova.virt.libvirt.report import (
    HostFacts,
    cpu_info,
    disk_gib,
    inventories,
    read_boot_id,
    read_cpu_stats,
    read_facts,
    traits,
)
from kilonova.virt.libvirt.running_copy import RunningCopy
from kilonova.virt.libvirt.snapshot import SnapshotFile, Snapshots
from kilonova.virt.libvirt.volumes import VolumeDirectory, VolumeFile, When
from kilonova.virt.libvirt.watch import Watch
from kilonova.virt.libvirt.xml.domain import Blueprint, domain_xml
from kilonova.virt.libvirt.xml.interface import interface
from kilonova.virt.libvirt.xml.volume import added_volume
from kilonova.virt.pci_providers import check_specs_without_names, pci_providers, with_providers
from kilonova.virt.pci_spec import choose as choose_devices
from kilonova.virt.pci_spec import read_specs

log = structlog.get_logger("kilonova.virt")

CACHE = "_base"  # Nova's name of it
FILE_THREADS = 4


class LibvirtDriver:
    """Implements virt.driver.Driver."""

    name = "libvirt"
    hypervisor_type = "QEMU"

    def __init__(
        self,
        options: LibvirtOptions,
        host: str,
        compute_id: str,
        instances: Path,
        clock: Clock,
        volumes: Path | None = None,
    ) -> None:
        """``instances`` is the directory of all guests' files, with the image cache in it; ``volumes`` that
        of the volumes, which others see, too.

        ``host`` is the name of the compute service; by the uuid ``compute_id`` our guests are told from
        those of others in the same libvirt.
        """
        self.stopped_delay = options.stopped_delay
        self._options = options
        self._host = host
        self._compute_id = compute_id
        self._instances = instances
        self._clock = clock
        self._threads = Threads("libvirt-files", FILE_THREADS)
        self._images = ImageCache(instances / CACHE, compute_id, clock, self._threads)
        self._files = GuestFiles(instances, self._images, self._threads, options.config_drive_format)
        self._snapshots = Snapshots(self._files, self._threads)
        self._parked = ParkedFiles(self._files, self._threads)
        self._watch = Watch(self._states)
        self._connection = Connection(options.connection_uri, self._watch, clock)
        self._running_copy = RunningCopy(self._connection, clock)
        self._domains = Domains(self._connection, compute_id, clock)
        self._volumes = VolumeDirectory(volumes)
        self._hot_plug = HotPlug(
            self._connection,
            self._watch,
            clock,
            attempts=options.detach_attempts,
            timeout=options.detach_timeout,
        )
        self._capabilities = Capabilities(self._connection, options.virt_type)
        self._specs = read_specs(options.device_specs)
        if options.pci_in_placement:
            check_specs_without_names([spec.devname for spec in self._specs])
        self._live = LiveMigration(
            host=host,
            options=options,
            instances=instances,
            files=self._files,
            connection=self._connection,
            domains=self._domains,
            capabilities=self._capabilities,
            threads=self._threads,
            clock=clock,
            definition=functools.partial(self._definition, when="arriving"),
        )
        self._topology: HostTopology | None = None
        self._cache_mode = "none"
        self._started_at = 0

    async def open(self, on_power_event: PowerEvent) -> None:
        """Raises Failed for a set-up that cannot work, Unreachable without libvirtd."""
        self._started_at = self._clock.now()
        await self._threads.run(self._make_directories)
        self._cache_mode = await self._threads.run(lambda: disk_cache_mode(self._instances))
        await self._connection.open()
        await self._capabilities.open()
        choose_cpu(
            self._options, await self._capabilities.machine(self._options.machine_type), self.virt_type
        )
        await self._watch.open(on_power_event)

    async def close(self) -> None:
        self._watch.close()
        await self._live.close()
        await self._connection.close()
        self._threads.close()
        self._volumes.close()

    @property
    def virt_type(self) -> str:
        """kvm or qemu."""
        return self._capabilities.virt_type

    async def report(self) -> HostReport:
        """As it is now.  Raises Failed for options that name what this host does not have."""
        facts = await read_facts(self._connection)
        options, machine = self._options, await self._capabilities.machine(self._options.machine_type)
        numa = self._look_at_cells(facts)
        shared, dedicated = options.cpus.split(facts.online)
        space = await self._threads.run(lambda: disk_gib(self._instances))
        devices = choose_devices(self._specs, await pci_devices(self._connection)) if self._specs else ()
        providers: tuple[ProviderReport, ...] = ()
        if options.pci_in_placement:
            devices = with_providers(self._compute_id, facts.hostname, devices)
            providers = pci_providers(self._compute_id, facts.hostname, devices)
        return HostReport(
            host=self._host,
            compute_id=self._compute_id,
            hypervisor_hostname=facts.hostname,
            hypervisor_type=self.hypervisor_type,
            hypervisor_version=facts.version,
            host_ip=options.host_ip,
            inventories=inventories(len(shared), len(dedicated), facts.memory_mib, space),
            traits=traits(machine, await self._capabilities.guest_features(machine), numa),
            cpu_info=cpu_info(self._capabilities.cpu),
            details={"virt_type": self.virt_type},
            started_at=self._started_at,
            boot_id=await self._threads.run(read_boot_id),
            numa=numa,
            pci_devices=devices,
            providers=providers,
        )

    async def cpu_stats(self) -> dict[str, int]:
        return await read_cpu_stats(self._connection)

    async def guests(self) -> dict[str, int]:
        return await self._domains.states()

    async def prepare(self, guest: GuestSpec, images: ImageSource) -> None:
        await self.check_volumes(guest.volumes)
        await self._files.prepare(guest, images)

    async def discard(self, uuid: str) -> None:
        await self._files.discard(uuid)

    async def snapshot(self, uuid: str, image_id: str) -> None:
        off = await self._domains.state(uuid) in (Power.NOSTATE, Power.SHUTDOWN, Power.CRASHED)
        copy = None if off else functools.partial(self._running_copy.copy, uuid)
        await self._snapshots.make(uuid, image_id, copy)

    async def snapshot_data(self, uuid: str, image_id: str) -> SnapshotFile:
        return await self._snapshots.data(uuid, image_id)

    async def drop_snapshot(self, uuid: str, image_id: str) -> None:
        await self._snapshots.drop(uuid, image_id)

    async def start(self, guest: GuestSpec, *, paused: bool) -> None:
        for file in self._files.disks(guest):
            if not await self._threads.run(file.path.exists):
                raise HostFault(f"The disks of guest {guest.uuid} are not on this host: no {file.path}.")
        await self._threads.run(lambda: _check_taps(guest.vifs))
        self._watch.add(guest.uuid)
        await self._domains.start(guest.uuid, await self._definition(guest), paused=paused)

    async def attach_interface(self, guest: GuestSpec, vif: Vif) -> None:
        await self._threads.run(lambda: _check_taps((vif,)))
        hardware, _ = await self._hardware(guest)
        flavor = guest.flavor
        made = interface(vif, hardware.vif_model, flavor.vcpus, flavor.extra_specs)
        await self._hot_plug.attach(guest.uuid, hot_plug.card(vif.mac), lambda _: made)

    async def detach_interface(self, guest: GuestSpec, vif: Vif) -> None:
        await self._hot_plug.detach(guest.uuid, hot_plug.card(vif.mac))

    async def attach_volume(self, guest: GuestSpec, volume: Attachment) -> None:
        (file,) = await self._usable((volume,))
        hardware, _ = await self._hardware(guest)
        await self._hot_plug.attach(
            guest.uuid,
            hot_plug.volume(volume.volume_id),
            lambda domains: added_volume(file, hardware.disk_bus, domains),
        )

    async def detach_volume(self, guest: GuestSpec, volume: Attachment) -> None:
        await self._hot_plug.detach(guest.uuid, hot_plug.volume(volume.volume_id))

    async def check_volumes(self, volumes: tuple[Attachment, ...]) -> None:
        await self._usable(volumes, "looking")

    async def _usable(
        self, volumes: tuple[Attachment, ...], when: When = "starting"
    ) -> tuple[VolumeFile, ...]:
        return await self._volumes.usable(volumes, self._capabilities.qemu_user, when)

    async def _hardware(self, guest: GuestSpec) -> tuple[Hardware, Machine]:
        """What the guest's image wants of its hardware, on the machine that it has here."""
        properties = guest.image.properties if guest.image else {}
        kind = machine_type(properties, self._capabilities.cpu.arch, self._options.machine_type)
        machine = await self._capabilities.machine(kind)
        return choose(properties, guest.flavor, machine, vnc=self._options.vnc), machine

    async def _definition(self, guest: GuestSpec, when: When = "starting") -> str:
        """The XML of a guest as it is to be on this host.  Raises Failed or HostFault."""
        hardware, machine = await self._hardware(guest)
        plan = Blueprint(
            guest=guest,
            hardware=hardware,
            files=self._files.disks(guest),
            console=self._files.of(guest.uuid) / CONSOLE,
            virt_type=self.virt_type,
            cpu=choose_cpu(self._options, machine, self.virt_type),
            cache=self._cache_mode,
            compute_id=self._compute_id,
            started_at=self._clock.now(),
            placement=await self._placement(guest),
            volumes=await self._usable(guest.volumes, when),
        )
        return domain_xml(plan, self._options)

    async def resume(self, uuid: str) -> None:
        await self._domains.resume(uuid)

    async def request_shutdown(self, uuid: str) -> None:
        await self._domains.press_power_button(uuid)

    async def request_reboot(self, uuid: str) -> bool:
        reboot = self._watch.reboot_of(uuid)
        try:
            if not await self._domains.ask_to_reboot(uuid):
                return False
            return await self._in_time(reboot, self._options.soft_reboot_timeout)
        finally:
            self._watch.forget_reboot(uuid)

    async def power_off(self, uuid: str) -> None:
        await self._domains.destroy(uuid)

    async def undefine(self, uuid: str) -> None:
        await self._domains.undefine(uuid)
        self._watch.remove(uuid)

    async def power_state(self, uuid: str) -> int:
        return await self._domains.state(uuid)

    async def console_output(self, uuid: str, limit: int) -> bytes:
        """Raises NotFound for a guest that was never started here.  Does not need libvirtd."""
        log_file = self._files.of(uuid) / CONSOLE
        try:
            output = await self._threads.run(lambda: console.tail(log_file, limit))
        except OSError as error:
            raise HostFault(f"The console of guest {uuid} cannot be read: {error}.") from error
        if output is not None:
            return output
        if await self._domains.state(uuid) == Power.NOSTATE:
            raise NotFound(f"There is no guest {uuid} on this host.")
        return b""

    async def remove_unused_images(self, age: float) -> list[str]:
        return await self._images.remove_unused(age)

    async def diagnostics(self, uuid: str) -> Diagnostics:
        xml, stats = await self._domains.describe(uuid, wanted(self._connection.libvirt))
        started = await self._domains.started_at(uuid)
        return diagnostics(xml, stats, self.virt_type, started, self._clock.now())

    # ---- cold moves ----

    async def check_room(self, guest: GuestSpec) -> None:
        await self.check_volumes(guest.volumes)
        await self._parked.check_room(guest)

    async def park(self, uuid: str) -> None:
        await self.undefine(uuid)
        await self._parked.park(uuid)

    async def unpark(self, uuid: str) -> None:
        await self._parked.unpark(uuid)

    async def drop_parked(self, uuid: str) -> None:
        await self._parked.drop(uuid)

    async def adopt_parked(self, guest: GuestSpec) -> None:
        await self._parked.adopt(guest)

    async def parked_files(self, uuid: str) -> tuple[Path, ...]:
        return await self._parked.travelling(uuid)

    async def begin_receiving(self, guest: GuestSpec) -> Path:
        return await self._files.receive(guest)

    async def fit_disks(self, guest: GuestSpec) -> None:
        await self._parked.fit(guest)

    # ---- live migration: see virt.libvirt.live ----

    async def locate(self, uuid: str) -> Located:
        return await self._live.locate(uuid)

    async def live_progress(self, uuid: str) -> Progress:
        return await self._live.progress(uuid)

    async def put_probe(self) -> str:
        return await self._live.put_probe()

    async def see_probe(self, probe: str) -> bool:
        return await self._live.see_probe(probe)

    async def remove_probe(self, probe: str) -> None:
        await self._live.remove_probe(probe)

    async def check_arrival(self, guest: GuestSpec, wish: LiveWish) -> ArrivalFacts:
        return await self._live.check_arrival(guest, wish)

    async def check_departure(self, guest: GuestSpec, wish: LiveWish, facts: ArrivalFacts) -> LivePlan:
        return await self._live.check_departure(guest, wish, facts)

    async def receive_live(self, guest: GuestSpec, plan: LivePlan, images: ImageSource) -> LivePlan:
        return await self._live.receive(guest, plan, images)

    async def send_live(self, guest: GuestSpec, plan: LivePlan) -> LiveOutcome:
        return await self._live.send(guest, plan)

    async def steer_live(self, uuid: str, wish: str) -> bool:
        return await self._live.steer(uuid, wish)

    async def settle_live(self, guest: GuestSpec) -> None:
        await self._live.settle(guest)
        self._watch.add(guest.uuid)

    async def leave_live(self, uuid: str, plan: LivePlan) -> None:
        await self._live.leave(uuid, plan)
        self._watch.remove(uuid)

    # ---- inside ----

    async def _placement(self, guest: GuestSpec) -> Placement:
        check_devices(guest)
        if guest.numa is not None and self._topology is None:
            self._look_at_cells(await read_facts(self._connection))
        return placement(guest, self._topology, self._options.cpus)

    def _look_at_cells(self, facts: HostFacts) -> HostTopology | None:
        options = self._options
        self._topology = host_topology(
            facts.cells, facts.online, options.cpus, options.reserved_pages, options.networks
        )
        return self._topology

    async def _in_time(self, event: asyncio.Future[bool], timeout: float) -> bool:
        """What the event says, False if nothing comes in time."""
        limit: asyncio.Future[None] = asyncio.ensure_future(self._clock.sleep(timeout))

        def late(_: object) -> None:
            if not event.done():
                event.set_result(False)

        limit.add_done_callback(late)
        try:
            return await event
        finally:
            limit.cancel()

    async def _states(self) -> dict[str, int]:
        """For the watch, when libvirtd is back: its QEMU may be another one by now."""
        self._capabilities.forget()
        return await self._domains.states()

    def _make_directories(self) -> None:
        instances = self._instances
        instances.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._images.open()
        if instances.stat().st_dev != (instances / CACHE).stat().st_dev:
            raise Failed(
                f"{instances / CACHE} is on another file system than {instances}: guests hold links to "
                "cached images, so both have to be on one. Mount it one directory higher."
            )


def _check_taps(vifs: tuple[Vif, ...]) -> None:
    """libvirt would say that some device is not there; this says which.  Raises HostFault."""
    for vif in vifs:
        made_by_os_vif = vif.delegate_create and not vif.details.get("ovs_hybrid_plug")
        if made_by_os_vif and not Path("/sys/class/net", vif.devname).exists():
            raise HostFault(f"Port {vif.port_id} is not plugged on this host: there is no {vif.devname}.")


def disk_cache_mode(directory: Path) -> str:
    """none where files can be opened past the page cache (safe for migration), else writeback."""
    probe = directory / ".direct-io"
    try:
        handle = os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    except OSError:
        log.info("no direct I/O here: disks are written through the page cache", directory=str(directory))
        return "writeback"
    finally:
        probe.unlink(missing_ok=True)
    os.close(handle)
    return "none"
