"""A hypervisor of records: a first-class driver that needs no root and no QEMU.

Its delays, faults and capacity can be set, so that what is hard to provoke on a real host is easy here.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import defaultdict, deque
from pathlib import Path
from typing import NamedTuple

from kilonova.clock import SECOND, Clock, iso_z
from kilonova.errors import HostFault, NotFound
from kilonova.model.host import HostReport, Inventory
from kilonova.model.port import Vif
from kilonova.model.states import POWER_NAMES, Power
from kilonova.model.volume import Attachment
from kilonova.rpc.messages import (
    CpuDiagnostics,
    Diagnostics,
    DiskDiagnostics,
    GuestSpec,
    NicDiagnostics,
)
from kilonova.rpc.moves import ArrivalFacts, LiveOutcome, LivePlan, LiveWish, Located, Progress
from kilonova.virt.driver import ImageSource, PowerEvent
from kilonova.virt.fake.guests import PREPARED, GuestFile
from kilonova.virt.fake.hardware import FakeHardware
from kilonova.virt.fake.live import Fabric, FakeLive
from kilonova.virt.fake.parked import FakeStorage, ParkedGuests
from kilonova.virt.fake.snapshot import FakeData, FakeDisks
from kilonova.virt.volumes import connection_of, out_of_reach


class Faults:
    """What is to go wrong: ``add("start", HostFault("..."))`` makes the next start fail once.

    ``hold(verb)`` makes a verb wait until ``release(verb)``.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[Exception]] = defaultdict(deque)
        self._gates: dict[str, asyncio.Event] = {}
        self._chances: dict[str, float] = {}
        self._random = random.Random()

    def often(self, verb: str, chance: float, source: random.Random) -> None:
        """Have the verb fail with that chance (0 to 1) each time, as ``source`` decides."""
        self._chances[verb] = chance
        self._random = source

    def add(self, verb: str, error: Exception, times: int = 1) -> None:
        self._queues[verb].extend([error] * times)

    def left(self, verb: str) -> int:
        """How many that were ordered have not happened yet."""
        return len(self._queues[verb])

    def mend(self, verb: str) -> None:
        self._queues[verb].clear()

    def held(self, verb: str) -> bool:
        return verb in self._gates

    def hold(self, verb: str) -> None:
        self._gates[verb] = asyncio.Event()

    def release(self, verb: str) -> None:
        self._gates.pop(verb).set()

    async def strike(self, verb: str) -> None:
        """Wait at the verb's gate, then raise what was ordered for it, if anything."""
        if verb in self._gates:
            await self._gates[verb].wait()
        if self._queues[verb]:
            raise self._queues[verb].popleft()
        chance = self._chances.get(verb)
        if chance and self._random.random() < chance:
            raise HostFault(f"A simulated fault of '{verb}'.")


class _Shape(NamedTuple):
    """What diagnostics say of a guest; no more is kept, as there may be ten thousand."""

    vcpus: int
    memory_mb: int | None
    config_drive: bool


_UNKNOWN = _Shape(0, None, False)


class FakeDriver:
    """Implements virt.driver.Driver."""

    name = "fake"
    hypervisor_type = "fake"
    stopped_delay = 0.0

    def __init__(
        self,
        host: str,
        compute_id: str,
        state_dir: Path | sqlite3.Connection,
        clock: Clock,
        capacity: dict[str, Inventory],
        *,
        delay: float = 0.0,
        host_ip: str = "127.0.0.1",
        hardware: FakeHardware | None = None,
    ) -> None:
        """Everything that it has can be changed while it runs: the next report says so.

        Instead of a directory it may be given a file of guests (`guests.opened`) that it shares with others.
        """
        self.fabric = Fabric()  # drivers that open with the same one pass guests on to each other
        self.faults = Faults()
        self.delay = delay
        self.ignores_shutdown: set[str] = set()  # guests that do not hear the power button
        self.keeps_devices: set[str] = set()  # guests that do not let go of what is to be unplugged
        self.unreachable: set[str] = set()  # volumes, by id or path, that this host does not see
        self.storage = FakeStorage()
        self._host = host
        self._compute_id = compute_id
        self._clock = clock
        self.capacity = capacity
        self.hardware = hardware or FakeHardware()
        self.cpu_times: dict[str, int] | None = None  # None: they follow the clock
        self._host_ip = host_ip
        self._file = state_dir / "fake-guests.db" if isinstance(state_dir, Path) else state_dir
        self._guests: GuestFile | None = None
        self._disks: FakeDisks | None = None
        self._shapes: dict[str, _Shape] = {}  # of guests that this process has started
        self._event: PowerEvent | None = None
        self._live: FakeLive | None = None

    @property
    def live(self) -> FakeLive:
        assert self._live is not None, "the driver is not open"
        return self._live

    @property
    def guest_file(self) -> GuestFile:
        assert self._guests is not None, "the driver is not open"
        return self._guests

    @property
    def disks(self) -> FakeDisks:
        assert self._disks is not None, "the driver is not open"
        return self._disks

    async def open(self, on_power_event: PowerEvent) -> None:
        shared = isinstance(self._file, sqlite3.Connection)
        self._guests = GuestFile(self._file, self._host if shared else "")
        self._disks = FakeDisks(self._guests.connection, self._host if shared else "")
        self._event = on_power_event
        self._live = FakeLive(
            self._host, self._guests, lambda: self.storage, self._clock, self.faults, self.fabric
        )

    async def close(self) -> None:
        self.live.close()
        if isinstance(self._file, Path):
            self.guest_file.close()

    async def report(self) -> HostReport:
        return HostReport(
            host=self._host,
            compute_id=self._compute_id,
            hypervisor_hostname=self._host,
            hypervisor_type=self.hypervisor_type,
            hypervisor_version=1000,
            host_ip=self._host_ip,
            inventories=self.capacity,
            traits=("COMPUTE_NODE", "COMPUTE_NET_ATTACH_INTERFACE"),
            cpu_info={"arch": "x86_64", "model": "fake", "vendor": "Kilonova", "features": []},
            details={"datapath_type": "netdev"},
            started_at=self._clock.now(),
            boot_id="" if self._guests is None else self._guests.boot_id(),
            numa=self.hardware.numa,
            pci_devices=self.hardware.devices(self._compute_id, self._host),
            items=self.hardware.listed(self._compute_id),
            providers=self.hardware.tree(self._compute_id, self._host),
        )

    async def cpu_stats(self) -> dict[str, int]:
        """Of a processor that is busy for a fifth of the time, unless a test says otherwise."""
        await self._do("cpu_stats")
        if self.cpu_times is not None:
            return self.cpu_times
        now = self._clock.now() * 1000
        shares = {"user": 10, "kernel": 5, "idle": 80, "iowait": 5}
        return {**{kind: now * share // 100 for kind, share in shares.items()}, "frequency": 2000}

    async def guests(self) -> dict[str, int]:
        return self.guest_file.defined()

    async def prepare(self, guest: GuestSpec, images: ImageSource) -> None:
        await self._do("prepare")
        self._check_volumes(guest.volumes)
        if self.guest_file.state(guest.uuid) is None:
            if guest.flat_root and guest.image is not None:  # others have nothing on their disks
                self.disks.write(guest.uuid, b"".join([piece async for piece in images.read(guest.image.id)]))
            self.guest_file.put(guest.uuid, PREPARED)

    async def discard(self, uuid: str) -> None:
        await self._do("discard")
        self.live.forget(uuid)
        self.guest_file.drop(uuid)
        self.disks.discard(uuid)
        self._shapes.pop(uuid, None)

    async def snapshot(self, uuid: str, image_id: str) -> None:
        await self._do("snapshot")
        if self.guest_file.state(uuid) is None:
            raise HostFault(f"The disk of guest {uuid} is not on this host.")
        self.disks.snapshot(uuid, image_id)

    async def snapshot_data(self, uuid: str, image_id: str) -> FakeData:
        await self._do("snapshot_data")
        return self.disks.data(uuid, image_id)

    async def drop_snapshot(self, uuid: str, image_id: str) -> None:
        await self._do("drop_snapshot")
        self.disks.drop_snapshot(uuid, image_id)

    async def start(self, guest: GuestSpec, *, paused: bool) -> None:
        await self._do("start")
        state = self.guest_file.state(guest.uuid)
        if state is None:
            raise HostFault(f"The disks of guest {guest.uuid} are not on this host.")
        if state == Power.PAUSED and not paused:
            self.guest_file.put(guest.uuid, Power.RUNNING)
        if state in (Power.RUNNING, Power.PAUSED):
            return
        self._check_volumes(guest.volumes)
        flavor = guest.flavor
        self._shapes[guest.uuid] = _Shape(flavor.vcpus, flavor.memory_mb, guest.config_drive is not None)
        self.guest_file.put(
            guest.uuid,
            Power.PAUSED if paused else Power.RUNNING,
            started_at=self._clock.now(),
            macs=tuple(vif.mac for vif in guest.vifs),
            volumes=guest.volumes,
        )

    async def attach_interface(self, guest: GuestSpec, vif: Vif) -> None:
        await self._do("attach_interface")
        state, macs = self.guest_file.state(guest.uuid), self.guest_file.macs(guest.uuid)
        if state not in (None, PREPARED) and vif.mac not in macs:
            self.guest_file.put(guest.uuid, state, macs=(*macs, vif.mac))

    async def detach_interface(self, guest: GuestSpec, vif: Vif) -> None:
        await self._do("detach_interface")
        state, macs = self.guest_file.state(guest.uuid), self.guest_file.macs(guest.uuid)
        if state is None or vif.mac not in macs:
            return
        if state in (Power.RUNNING, Power.PAUSED) and guest.uuid in self.keeps_devices:
            raise HostFault(f"Guest {guest.uuid} does not let go of the network card {vif.mac}.")
        self.guest_file.put(guest.uuid, state, macs=tuple(each for each in macs if each != vif.mac))

    async def attach_volume(self, guest: GuestSpec, volume: Attachment) -> None:
        await self._do("attach_volume")
        self._check_volumes((volume,))
        state, had = self.guest_file.state(guest.uuid), self.guest_file.volumes(guest.uuid)
        if state in (None, PREPARED) or any(each.volume_id == volume.volume_id for each in had):
            return
        if any(each.device == volume.device for each in had):
            raise HostFault(f"Guest {guest.uuid} has another disk at {volume.device}: choose another device.")
        self.guest_file.put(guest.uuid, state, volumes=(*had, volume))

    async def detach_volume(self, guest: GuestSpec, volume: Attachment) -> None:
        await self._do("detach_volume")
        state, had = self.guest_file.state(guest.uuid), self.guest_file.volumes(guest.uuid)
        left = tuple(each for each in had if each.volume_id != volume.volume_id)
        if state is None or left == had:
            return
        if state in (Power.RUNNING, Power.PAUSED) and guest.uuid in self.keeps_devices:
            raise HostFault(f"Guest {guest.uuid} does not let go of volume {volume.volume_id}.")
        self.guest_file.put(guest.uuid, state, volumes=left)

    async def check_volumes(self, volumes: tuple[Attachment, ...]) -> None:
        await self._do("check_volumes")
        self._check_volumes(volumes)

    def _check_volumes(self, volumes: tuple[Attachment, ...]) -> None:
        """Raises HostFault for one that this host does not see."""
        for volume in volumes:
            path = connection_of(volume).path
            if not self.unreachable.isdisjoint((volume.volume_id, path)):
                raise out_of_reach(volume, f"there is no {path}")

    async def resume(self, uuid: str) -> None:
        await self._do("resume")
        if self._must_exist(uuid) not in (Power.RUNNING, Power.PAUSED):
            raise HostFault(f"Guest {uuid} is off and cannot go on; start it.")
        self.guest_file.put(uuid, Power.RUNNING)

    async def request_shutdown(self, uuid: str) -> None:
        await self._do("request_shutdown")
        if self.guest_file.state(uuid) == Power.RUNNING and uuid not in self.ignores_shutdown:
            self.turn_off(uuid)

    async def request_reboot(self, uuid: str) -> bool:
        await self._do("request_reboot")
        if self._must_exist(uuid) != Power.RUNNING or uuid in self.ignores_shutdown:
            return False
        self.guest_file.put(uuid, Power.RUNNING, started_at=self._clock.now())
        return True

    async def power_off(self, uuid: str) -> None:
        await self._do("power_off")
        if self.guest_file.state(uuid) in (Power.RUNNING, Power.PAUSED):
            self.turn_off(uuid)

    async def undefine(self, uuid: str) -> None:
        await self._do("undefine")
        self.live.forget(uuid)
        if self.guest_file.state(uuid) not in (None, PREPARED):
            self.guest_file.put(uuid, PREPARED, macs=(), volumes=())

    async def power_state(self, uuid: str) -> int:
        state = self.guest_file.state(uuid)
        return Power.NOSTATE if state is None or state == PREPARED else state

    async def console_output(self, uuid: str, limit: int) -> bytes:
        await self._do("console_output")
        self._must_exist(uuid)
        starts, at = self.guest_file.starts(uuid)
        lines = [f"fake guest {uuid}", f"started {starts} times, last at {iso_z(at)}", "login: "]
        return "\n".join(lines).encode()[-limit:]

    async def remove_unused_images(self, age: float) -> list[str]:
        return []  # images are not fetched

    async def diagnostics(self, uuid: str) -> Diagnostics:
        await self._do("diagnostics")
        state = self._must_exist(uuid)
        shape = self._shapes.get(uuid, _UNKNOWN)
        _, at = self.guest_file.starts(uuid)
        return Diagnostics(
            state=POWER_NAMES[state],
            driver="fake",
            hypervisor="fake",
            hypervisor_os="linux",
            uptime=(self._clock.now() - at) // SECOND,
            config_drive=shape.config_drive,
            memory_maximum=shape.memory_mb,
            memory_used=None,
            cpus=tuple(CpuDiagnostics(id=n) for n in range(shape.vcpus)),
            disks=(DiskDiagnostics(),) * (1 + len(self.guest_file.volumes(uuid))),
            nics=tuple(NicDiagnostics(mac_address=mac) for mac in self.guest_file.macs(uuid)),
        )

    # ---- cold moves ----

    @property
    def _parked(self) -> ParkedGuests:
        return ParkedGuests(self.guest_file, self.storage)

    async def put_probe(self) -> str:
        await self._do("put_probe")
        return self._parked.put_probe()

    async def see_probe(self, probe: str) -> bool:
        await self._do("see_probe")
        return self._parked.see_probe(probe)

    async def remove_probe(self, probe: str) -> None:
        await self._do("remove_probe")
        self._parked.remove_probe(probe)

    async def check_room(self, guest: GuestSpec) -> None:
        await self._do("check_room")
        self._check_volumes(guest.volumes)
        self._parked.check_room(guest)

    async def park(self, uuid: str) -> None:
        await self._do("park")
        self._parked.park(uuid)

    async def unpark(self, uuid: str) -> None:
        await self._do("unpark")
        self._parked.unpark(uuid)

    async def drop_parked(self, uuid: str) -> None:
        await self._do("drop_parked")
        self._parked.drop(uuid)

    async def adopt_parked(self, guest: GuestSpec) -> None:
        await self._do("adopt_parked")
        self._check_volumes(guest.volumes)
        self._parked.adopt(guest)

    async def parked_files(self, uuid: str) -> tuple[Path, ...]:
        await self._do("parked_files")
        return self._parked.files(uuid)

    async def begin_receiving(self, guest: GuestSpec) -> None:
        """Its record stands for its files: there is nothing to send."""
        await self._do("begin_receiving")
        self._check_volumes(guest.volumes)
        self._parked.receive(guest)

    async def fit_disks(self, guest: GuestSpec) -> None:
        await self._do("fit_disks")
        self._parked.fit(guest)

    # ---- live moves ----

    async def locate(self, uuid: str) -> Located:
        await self._do("locate")
        return self.live.locate(uuid)

    async def live_progress(self, uuid: str) -> Progress:
        await self._do("live_progress")
        return self.live.progress(uuid)

    async def check_arrival(self, guest: GuestSpec, wish: LiveWish) -> ArrivalFacts:
        await self._do("check_arrival")
        self._check_volumes(guest.volumes)
        return self.live.check_arrival(guest)

    async def check_departure(self, guest: GuestSpec, wish: LiveWish, facts: ArrivalFacts) -> LivePlan:
        await self._do("check_departure")
        return self.live.check_departure(guest, wish, facts)

    async def receive_live(self, guest: GuestSpec, plan: LivePlan, images: ImageSource) -> LivePlan:
        await self._do("receive_live")
        self._check_volumes(guest.volumes)
        return self.live.receive(guest, plan)

    async def send_live(self, guest: GuestSpec, plan: LivePlan) -> LiveOutcome:
        await self._do("send_live")
        return await self.live.send(guest, plan)

    async def steer_live(self, uuid: str, wish: str) -> bool:
        await self._do("steer_live")
        return self.live.steer(uuid, wish)

    async def settle_live(self, guest: GuestSpec) -> None:
        await self._do("settle_live")
        self.live.settle(guest)

    async def leave_live(self, uuid: str, plan: LivePlan) -> None:
        await self._do("leave_live")
        self.live.leave(uuid)

    def turn_off(self, uuid: str) -> None:
        """The guest goes off, by itself or by its power button."""
        self.guest_file.put(uuid, Power.SHUTDOWN)
        if self._event is not None:
            self._event(uuid, Power.SHUTDOWN)

    def turn_on(self, uuid: str) -> None:
        """Somebody else starts the guest."""
        self.guest_file.put(uuid, Power.RUNNING)
        if self._event is not None:
            self._event(uuid, Power.RUNNING)

    def _must_exist(self, uuid: str) -> int:
        state = self.guest_file.state(uuid)
        if state is None or state == PREPARED:
            raise NotFound(f"There is no guest {uuid} on this host.")
        return state

    async def _do(self, verb: str) -> None:
        await self.faults.strike(verb)
        if self.delay:
            await self._clock.sleep(self.delay)
