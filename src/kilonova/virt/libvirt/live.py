"""The libvirt driver's part in live migrations."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
from msgspec.structs import replace

from kilonova.clock import Clock
from kilonova.errors import Conflict, HostFault, Invalid, TryAgain, Unreachable
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import ArrivalFacts, LiveOutcome, LivePlan, LiveWish, Located, Presence, Progress
from kilonova.threads import Threads
from kilonova.virt.driver import ImageSource
from kilonova.virt.libvirt import live_files
from kilonova.virt.libvirt.capabilities import Capabilities, Machine
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.disks import GuestFiles
from kilonova.virt.libvirt.domains import Domains
from kilonova.virt.libvirt.hardware import machine_type
from kilonova.virt.libvirt.live_options import bracketed
from kilonova.virt.libvirt.live_sending import HERE, Sender
from kilonova.virt.libvirt.options import LibvirtOptions

log = structlog.get_logger("kilonova.virt")

WHOLE_HOST = ("maximum", "host-passthrough")  # CPU modes that give all that the host has
COMING = (Presence.INCOMING, Presence.POSTCOPY)


@dataclass(kw_only=True)
class LiveMigration:
    """The live verbs of virt.moving.MovingDriver; those not described here do what is said there."""

    host: str
    options: LibvirtOptions
    instances: Path  # the directory of all guests
    files: GuestFiles
    connection: Connection
    domains: Domains
    capabilities: Capabilities
    threads: Threads
    clock: Clock
    definition: Callable[[GuestSpec], Awaitable[str]]  # the XML with which this host would start a guest

    def __post_init__(self) -> None:
        self._sender = Sender(self.connection, self.options.live, self.clock)

    async def close(self) -> None:
        await self._sender.close()

    # ---- looking ----

    async def locate(self, uuid: str) -> Located:
        here = self.files.of(uuid)
        try:
            presence = (await self._sender.job(uuid).seen()).presence
        except Unreachable:
            raise
        except TryAgain as error:
            raise Unreachable(str(error)) from error
        return Located(uuid=uuid, presence=presence, files=await self.threads.run(here.exists))

    async def progress(self, uuid: str) -> Progress:
        return await self._sender.job(uuid).look() or Progress(uuid=uuid)

    # ---- storage that both share ----

    async def put_probe(self) -> str:
        try:
            return await self.threads.run(lambda: live_files.put_probe(self.instances, self.clock.now()))
        except OSError as error:
            raise HostFault(f"No file can be made in {self.instances}: {error}.") from error

    async def see_probe(self, probe: str) -> bool:
        path = live_files.probe_path(self.instances, probe)
        return await self.threads.run(path.exists)

    async def remove_probe(self, probe: str) -> None:
        path = live_files.probe_path(self.instances, probe)
        await self.threads.run(lambda: path.unlink(missing_ok=True))

    # ---- checks ----

    async def check_arrival(self, guest: GuestSpec, wish: LiveWish) -> ArrivalFacts:
        check_devices_stay(guest)
        await self.definition(guest)  # the ports and cells that it has can be had here
        machine = await self._machine(guest)
        features = await self.capabilities.guest_features(machine)
        space = await self.threads.run(lambda: live_files.free_bytes(self.instances))
        live = self.options.live
        here = self.files.of(guest.uuid)
        return ArrivalFacts(
            host=self.host,
            disk_available=space,
            listen_address=self.options.vnc_listen,
            migration_uri=f"tcp://{bracketed(live.address or self.host)}",
            delegates=delegates(guest),
            waits_for_plug=live.wait_for_plug,
            cpu_features=tuple(sorted(features)),
            has_files=await self.threads.run(lambda: live_files.has_files(here)),
            probe=await self.put_probe(),  # last: what fails leaves none
        )

    async def check_departure(self, guest: GuestSpec, wish: LiveWish, facts: ArrivalFacts) -> LivePlan:
        check_devices_stay(guest)
        job = self._sender.job(guest.uuid)
        presence = (await job.seen()).presence
        if presence not in HERE:
            raise HostFault(f"Guest {guest.uuid} cannot be sent while it runs: it is {presence}.")
        shared = await self.see_probe(facts.probe)
        if facts.has_files and not shared:  # before anything is undone there by removing them
            raise HostFault(f"There is a directory of guest {guest.uuid} on {facts.host} already.")
        block = decide(wish, shared=shared, directory=self.instances)
        if block and self.options.live.tunnelled:
            raise HostFault(
                "libvirt sends no disks through a tunnel: unset [libvirt]live_migration_tunnelled."
            )
        await self._check_cpu(guest, facts)
        disks = self.files.disks(guest)
        here = self.files.of(guest.uuid)
        try:
            found = await self.threads.run(lambda: live_files.sizes(disks)) if block else live_files.Sizes()
            packed = {} if shared else await self.threads.run(lambda: live_files.pack(here, disks))
        except OSError as error:
            raise HostFault(f"The files of guest {guest.uuid} cannot be read: {error}.") from error
        check_space(found, wish, facts)
        return LivePlan(
            destination=facts.host,
            shared_path=shared,
            block=block,
            disk_bytes=sum(found.actual.values()),
            memory_mb=guest.flavor.memory_mb,
            listen_address=facts.listen_address,
            migration_uri=facts.migration_uri,
            delegates=facts.delegates,
            old_vifs=guest.vifs,
            disks=found.virtual,
            flat_root=found.flat_root,
            files=packed,
        )

    async def _machine(self, guest: GuestSpec) -> Machine:
        properties = guest.image.properties if guest.image else {}
        arch = self.capabilities.cpu.arch
        return await self.capabilities.machine(machine_type(properties, arch, self.options.machine_type))

    async def _check_cpu(self, guest: GuestSpec, facts: ArrivalFacts) -> None:
        """Whether the destination has all features of the processor that the guest sees, as libvirt tells
        them apart.  libvirt compares once more when the guest comes."""
        if facts.cpu:
            raise HostFault(f"The guest's processor cannot be had on {facts.host}: {facts.cpu}")
        xml = await self.domains.migratable_xml(guest.uuid)
        cpu = ET.fromstring(xml).find("cpu")
        if cpu is None:
            return
        machine = await self._machine(guest)
        if cpu.get("mode") in WHOLE_HOST:
            needed = await self.capabilities.guest_features(machine)
        elif cpu.find("model") is not None:
            needed = await self.capabilities.features_of(machine, cpu)
        else:
            return
        missing = sorted(needed - set(facts.cpu_features))
        if missing:
            raise HostFault(
                f"The processor of {facts.host} does not have what guest {guest.uuid} sees of its own: "
                f"{', '.join(missing)}."
            )

    # ---- coming ----

    async def receive(self, guest: GuestSpec, plan: LivePlan, images: ImageSource) -> LivePlan:
        here = self.files.of(guest.uuid)
        presence = (await self.locate(guest.uuid)).presence
        if presence not in (Presence.ABSENT, Presence.OFF, Presence.LEFT):
            raise HostFault(f"Guest {guest.uuid} is on this host already: it is {presence}.")
        if plan.shared_path:
            if not await self.threads.run(here.exists):
                raise HostFault(f"There is no {here} on this host, which should share it.")
        else:
            await self._make_files(guest, plan, images, here)
        live = self.options.live
        return replace(
            plan,
            domain=await self.definition(guest),
            new_vifs=guest.vifs,
            migration_uri=f"tcp://{bracketed(live.address or self.host)}",
        )

    async def _make_files(self, guest: GuestSpec, plan: LivePlan, images: ImageSource, here: Path) -> None:
        try:
            await self.threads.run(lambda: live_files.arrive(here))
            await self.files.prepare_empty(guest, images, plan.disks, flat=plan.flat_root)
            await self.threads.run(lambda: live_files.unpack(here, plan.files))
        except OSError as error:
            raise HostFault(f"The files of guest {guest.uuid} cannot be made here: {error}.") from error

    async def settle(self, guest: GuestSpec) -> None:
        presence = (await self.locate(guest.uuid)).presence
        if presence in COMING:
            raise TryAgain(f"Guest {guest.uuid} is still coming.")
        if presence in (Presence.ABSENT, Presence.LEFT):
            raise HostFault(f"Guest {guest.uuid} has not come to this host: it is {presence}.")
        await self.domains.keep(guest.uuid)
        here = self.files.of(guest.uuid)
        await self.threads.run(lambda: live_files.settled(here))

    # ---- going ----

    async def send(self, guest: GuestSpec, plan: LivePlan) -> LiveOutcome:
        return await self._sender.send(guest.uuid, plan)

    async def steer(self, uuid: str, wish: str) -> bool:
        if wish not in ("abort", "force_complete"):
            raise Invalid(f"'{wish}' is nothing that can be done with a live migration.")
        job = self._sender.job(uuid)
        seen = await job.look()
        if seen is None:
            return False
        if seen.phase == "postcopy":
            if wish == "abort":
                raise Conflict(f"Guest {uuid} goes on at its destination already and cannot be called back.")
            return True
        try:
            await (job.abort() if wish == "abort" else self._sender.force_complete(uuid))
        except HostFault as error:
            if await job.look() is None:  # it has ended just now
                return False
            log.warning("a live migration did not hear", instance=uuid, wish=wish, error=str(error))
            raise
        return True

    async def leave(self, uuid: str, plan: LivePlan) -> None:
        seen = await self._sender.job(uuid).seen()
        if seen.sent is not None:
            raise TryAgain(f"Guest {uuid} is still being sent.")
        if seen.presence in HERE:
            log.error("a guest runs here that has gone to another host; it is ended", instance=uuid)
        await self.domains.undefine(uuid)
        if not plan.shared_path:
            await self.files.discard(uuid)


def check_devices_stay(guest: GuestSpec) -> None:
    """Raises HostFault for a guest that has devices of its host (MG-LM-4)."""
    if guest.pci:
        addresses = ", ".join(device.address for device in guest.pci)
        raise HostFault(
            f"Guest {guest.uuid} has devices of its host ({addresses}) and has to stay with them."
        )


def delegates(guest: GuestSpec) -> tuple[str, ...]:
    """The ports of the guest that os-vif can make here (OVS-13)."""
    return tuple(
        vif.port_id
        for vif in guest.vifs
        if vif.vnic_type == "normal" and not vif.details.get("ovs_hybrid_plug")
    )


def decide(wish: LiveWish, *, shared: bool, directory: Path) -> bool:
    """Whether the disks are sent, too (MG-LM-8).  Raises HostFault for what does not fit the storage."""
    if wish.block is None:
        return not shared
    if wish.block and shared:
        raise HostFault(
            f"{directory} is not on local storage: block migration cannot be used, both hosts share it."
        )
    if not wish.block and not shared:
        raise HostFault(f"{directory} is not on shared storage: only block migration can be used.")
    return wish.block


def check_space(found: live_files.Sizes, wish: LiveWish, facts: ArrivalFacts) -> None:
    """Raises HostFault if the disks do not fit: as large as they may get, or with overcommit as they are."""
    needed = sum((found.actual if wish.disk_over_commit else found.virtual).values())
    if needed > facts.disk_available:
        raise HostFault(
            f"The disk of {facts.host} is too small: the guest's disks need {needed >> 20} MiB, and "
            f"{facts.disk_available >> 20} MiB are free."
        )
