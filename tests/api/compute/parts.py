"""A Cloud for the API: a real database and journal, and small collaborators.

Nothing runs operations here: a server stays as it was submitted until a test changes its row.
"""

from __future__ import annotations

import itertools
import uuid
from pathlib import Path
from typing import Any, cast

from kilonova.clock import SystemClock
from kilonova.db import flavors, hosts, instances
from kilonova.db.engine import Database
from kilonova.errors import NotFound
from kilonova.journal.journal import Journal
from kilonova.journal.runner import Runner
from kilonova.model.context import RequestContext
from kilonova.model.host import HostReport, Inventory
from kilonova.model.image import Image
from kilonova.model.instance import Instance
from kilonova.model.port import FixedIp, Vif
from kilonova.operations.cloud import Cloud
from kilonova.rpc.messages import CpuDiagnostics, Diagnostics, DiskDiagnostics, NicDiagnostics
from kilonova.services.volume.port import VolumeInfo
from kilonova.settings import Settings
from kilonova.testing.embedded import default_options

IMAGE = "11111111-1111-4111-8111-111111111111"
NETWORK = "22222222-2222-4222-8222-222222222222"
PORT = "33333333-3333-4333-8333-333333333333"
HOST = "host1"

VIF = Vif(
    port_id=PORT,
    mac="fa:16:3e:00:00:01",
    network_id=NETWORK,
    network_name="private",
    fixed_ips=(
        FixedIp(subnet_id="44444444-4444-4444-8444-444444444444", address="10.0.0.5"),
        FixedIp(subnet_id="55555555-5555-4555-8555-555555555555", address="fd00::5", version=6),
    ),
    tag="nic1",
)


class NoRunner:
    """Takes operations down and never begins them."""

    owner = "nobody"
    lease = 30_000_000
    cloud: Any = None

    def __init__(self) -> None:
        self.interrupted: list[int] = []

    def takes_more(self) -> bool:
        return False

    def wake(self) -> None:
        pass

    def interrupt(self, ids: list[int]) -> None:
        self.interrupted += ids


class Images:
    async def show(self, context: RequestContext, image_id: str) -> Image:
        if image_id != IMAGE:
            raise NotFound(f"Image {image_id} could not be found.")
        return Image(id=IMAGE, name="cirros", size=1024, properties={"hw_disk_bus": "virtio"})


class Networks:
    """Knows one network and one port; records what it was told."""

    def __init__(self) -> None:
        self.ports: dict[str, tuple[Vif, ...]] = {}

    async def check(self, context: Any, networks: Any, groups: Any, count: int, auto: bool) -> int:
        return count

    async def vifs(self, instance_uuid: str) -> tuple[Vif, ...]:
        return self.ports.get(instance_uuid, ())

    async def security_groups(self, instance_uuid: str) -> tuple[str, ...]:
        return ("default",)


class Volumes:
    """Knows the volumes that it was told of, each as everybody's."""

    def __init__(self) -> None:
        self.known: dict[str, VolumeInfo] = {}

    def put(self, volume_id: str, status: str = "available", **more: Any) -> str:
        self.known[volume_id] = VolumeInfo(
            id=volume_id, name="v", size_gb=1, status=status, availability_zone="nova", **more
        )
        return volume_id

    async def check(self, context: RequestContext, volume_id: str) -> VolumeInfo:
        if volume_id not in self.known:
            raise NotFound(f"Volume {volume_id} could not be found.")
        return self.known[volume_id]


class Agent:
    """A host whose guests have written three lines and count something."""

    async def console_output(self, uuid: str) -> bytes:
        return b"one\ntwo\x00\nthree"

    async def diagnostics(self, uuid: str) -> Diagnostics:
        return Diagnostics(
            state="running",
            driver="libvirt",
            memory_maximum=64,
            cpus=(CpuDiagnostics(id=0, time=17),),
            disks=(DiskDiagnostics(read_bytes=1, read_requests=2),),
            nics=(NicDiagnostics(mac_address=VIF.mac, rx_octets=5),),
        )


class Hosts:
    def agent(self, host: str) -> Any:
        return Agent()


class Zones:
    """A scheduler that only says which zones and hosts there are."""

    was_interrupted = False

    def __init__(self, db: Database) -> None:
        self._db = db

    async def zone_is_open(self, zone: str) -> bool:
        return zone == "nova"

    async def knows(self, host: str | None, node: str | None) -> tuple[bool, bool]:
        there = await self._db.read(hosts.list_all)
        return (
            host is None or host in {each.host for each in there},
            node is None or node in {each.hypervisor_hostname for each in there},
        )


def settings_for(state_dir: Path) -> Settings:
    options = default_options()
    options["quota"].update(instances=10_000, cores=100_000, ram=10_000_000)
    return Settings(state_dir=state_dir, driver="fake", options=options)


async def small_cloud(db: Database, state_dir: Path) -> Cloud:
    """With the usual flavors and one host."""
    clock = SystemClock()
    journal = Journal(clock, cast(Runner, NoRunner()))
    made: Any = Cloud(
        settings=settings_for(state_dir),
        clock=clock,
        new_uuid=lambda: str(uuid.uuid4()),
        db=db,
        identity=cast(Any, None),
        image=cast(Any, Images()),
        network=cast(Any, Networks()),
        placement=cast(Any, None),
        volume=cast(Any, Volumes()),
        hosts=cast(Any, Hosts()),
        scheduler=cast(Any, Zones(db)),
        journal=journal,
        config_drive=lambda instance, files: {},
    )
    report = HostReport(
        host=HOST,
        compute_id=str(uuid.uuid4()),
        hypervisor_hostname=HOST,
        hypervisor_type="fake",
        hypervisor_version=1,
        host_ip="127.0.0.1",
        inventories={"VCPU": Inventory(total=4)},
    )
    await db.write(lambda tx: flavors.seed(tx, clock.now()))
    await db.write(lambda tx: hosts.upsert(tx, report, clock.now()))
    return cast(Cloud, made)


_numbers = itertools.count()


async def server(cloud: Cloud, project_id: str, **values: Any) -> Instance:
    """A server as it is when it runs on the host."""
    number = next(_numbers)
    now = cloud.clock.now()
    flavor = await cloud.db.read(lambda tx: flavors.show(tx, "1"))
    defaults: dict[str, Any] = {
        "user_id": "user-of-" + project_id,
        "display_name": f"server-{number}",
        "hostname": f"server-{number}",
        "reservation_id": "r-12345678",
        "vm_state": "active",
        "power_state": 1,
        "host": HOST,
        "node": HOST,
        "availability_zone": "nova",
        "flavor": flavor,
        "image": {"id": IMAGE},
        "security_groups": ("default",),
        "vifs": (VIF,),
        "created_at": now + number,
        "updated_at": now + number,
        "launched_at": now + number,
    }
    from kilonova.model.instance import ImageMeta

    merged = {**defaults, **values}
    if isinstance(merged["image"], dict):
        merged["image"] = ImageMeta(**merged["image"])
    made = Instance(uuid=str(uuid.uuid4()), project_id=project_id, **merged)
    await cloud.db.write(lambda tx: instances.insert(tx, made))
    cast(Any, cloud.network).ports[made.uuid] = made.vifs
    return made
