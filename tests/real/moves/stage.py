"""Two real hosts and a guest that is quick to boot, between which the matrix has it moved."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from kilonova.db import instances
from kilonova.db.engine import Tx
from kilonova.db.postgresql import PostgresqlDatabase
from kilonova.db.tables.cells import leftovers
from kilonova.journal import attention
from kilonova.journal.model import ActionRow
from kilonova.l2agent.switch import DEAD_VLAN
from kilonova.model.instance import Instance
from kilonova.model.states import Power
from kilonova.testing.fleet.fleet import DATABASE, Pace
from kilonova.testing.lab.host import Host
from kilonova.testing.lab.inside import STATE
from kilonova.testing.one_guest import Sight, complaints
from tests.real import busy_guest
from tests.real.moves.faults import Ends
from tests.real.moves.gate import Gate
from tests.real.real_cloud import wait_until
from tests.real.two_hosts import TwoHosts, two_hosts

PEACE = 30.0  # seconds in which all has ended, once nothing is wrong any more
LIBVIRT = "live_migration_bandwidth = 8\ncold_migration_bandwidth = 4"  # MiB a second
MORE = "\n[DEFAULT]\nshutdown_timeout = 0\n"  # the guest does not hear the button
PAGES, MEGABYTES = 40, 16  # the guest dirties so many pages 18 times a second, and has so much memory
PATTERN = "0x5a"
KEPT = ("2M", "4M")  # where the pattern is on its disk, and how much of it
EMPTY = ["set", []]  # as ovs-vsctl writes it
POWER = {"running": Power.RUNNING, "paused": Power.PAUSED, "shut off": Power.SHUTDOWN}


class Stage:
    """The server is at rest on one host when a point begins and, unless that fails, when it ends."""

    def __init__(self, cloud: TwoHosts, directory: Path) -> None:
        self.cloud = cloud
        self.conninfo = cloud.cloud.fleet.postgres.conninfo(DATABASE)
        self.gate = Gate(self.conninfo)
        self.admin = cloud.admin
        self.uuid = self._boot(directory)
        self.comes_to("ACTIVE")
        self.ends: Ends
        self.write_pattern()

    def _boot(self, directory: Path) -> str:
        file = directory / "busy.raw"
        file.write_bytes(busy_guest.image(PAGES, MEGABYTES))
        image = self.admin.create_image(
            "busy", filename=str(file), disk_format="raw", container_format="bare", wait=True
        )
        flavor = self.admin.compute.create_flavor(name="busy", ram=64, vcpus=1, disk=1)
        network = self.admin.network.create_network(name="net")
        self.admin.network.create_subnet(network_id=network.id, cidr="10.40.0.0/24", ip_version=4)
        made = self.admin.compute.create_server(
            name="moves", image_id=image.id, flavor_id=flavor.id, networks=[{"uuid": network.id}]
        )
        return str(made.id)

    def comes_to(self, status: str) -> None:
        """It is at rest in this status.  Raises AssertionError, which says why, and TimeoutError."""

        def look() -> bool:
            found = self.admin.compute.get_server(self.uuid)
            assert found.status != "ERROR" or status == "ERROR" or found.task_state, found.fault
            return bool(found.status == status and found.task_state is None)

        wait_until(look, 60.0, f"the server does not become {status}")

    # ---- what is seen ----

    def read(self, query: Callable[[Tx], Any]) -> Any:
        async def ask() -> Any:
            database = PostgresqlDatabase(self.conninfo, threads=1)
            try:
                return await database.read(query)
            finally:
                await database.close()

        return asyncio.run(ask())

    def row(self) -> Instance:
        found = self.read(lambda tx: instances.show(tx, self.uuid))
        assert isinstance(found, Instance)
        return found

    def open_actions(self) -> list[ActionRow]:
        return list(self.read(attention.open_actions))

    def instances(self, host: Host) -> Path:
        return host.path(f"{STATE}/instances")

    def sights(self) -> dict[str, Sight]:
        """Of hosts that are on."""
        ports = [port.id for port in self.admin.network.ports(device_id=self.uuid)]
        return {host.name: self._sight(host, ports) for host in self.cloud.hosts if host.alive}

    def _sight(self, host: Host, ports: list[str]) -> Sight:
        state = None
        for line in host.run("virsh", "-q", "-c", "qemu:///system", "list", "--all").splitlines():
            _, name, words = line.split(maxsplit=2)
            if name == self.uuid:
                state = POWER[words.strip()]
        files, tags = self.instances(host), _tags(host, ports)
        return Sight(
            power=state,
            plugged=len(tags),
            unwired=sum(tag in (DEAD_VLAN, EMPTY) for tag in tags),
            files=(files / self.uuid).exists(),
            aside=(files / f"{self.uuid}_resize").exists(),
        )

    def complaints(self, *, also_off: bool = False) -> list[str]:
        sights = self.sights()
        return list(self.read(lambda tx: complaints(tx, self.uuid, sights, also_off=also_off)))

    def says(self, host: Host) -> tuple[int, int]:
        """How often the guest has said that it came up, and that it is alive, to the host that has it."""
        log = self.instances(host) / self.uuid / "console.log"
        said = log.read_bytes() if log.exists() else b""
        return said.count(busy_guest.UP), said.count(busy_guest.ALIVE)

    def is_alive(self, host: Host) -> None:
        """It goes on saying so.  Raises TimeoutError."""
        before = self.says(host)[1]
        wait_until(lambda: self.says(host)[1] > before, PEACE, "the guest is said to run and says nothing")

    # ---- what is on its disk ----

    def disk(self, host: Host) -> Path:
        return self.instances(host) / self.uuid / "disk"

    def write_pattern(self) -> None:
        self.admin.compute.stop_server(self.uuid)
        self.comes_to("SHUTOFF")
        write = f"write -P {PATTERN} {KEPT[0]} {KEPT[1]}"
        subprocess.run(["qemu-io", "-c", write, self.disk(self.host())], check=True, capture_output=True)
        self.start()

    def start(self) -> None:
        self.admin.compute.start_server(self.uuid)
        self.comes_to("ACTIVE")

    def has_pattern(self, host: Host) -> bool:
        read = f"read -P {PATTERN} {KEPT[0]} {KEPT[1]}"
        command = ["qemu-io", "-r", "-U", "-c", read, str(self.disk(host))]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        return done.returncode == 0 and "failed" not in done.stdout

    # ---- what has to be before a point ----

    def host(self) -> Host:
        return self.cloud.cloud.host(str(self.row().host))

    def at_rest(self) -> None:
        """Both hosts are up, also after what was done to them by the point before."""
        services = self.admin.compute.services
        wait_until(lambda: all(each.state == "up" for each in services(binary="nova-compute")), PEACE)
        source = self.host()
        self.ends = Ends(self.cloud.cloud, source, self.cloud.cloud.other(source.name))

    def ready(self) -> None:
        """Its disk can be told from a new one, which an evacuation may have given it."""
        self.at_rest()
        if not self.has_pattern(self.ends.source):
            self.write_pattern()

    def running(self) -> None:
        """It has come up, on a disk that can be told from a new one."""
        self.ready()
        self.is_alive(self.ends.source)

    def migrated(self) -> None:
        """The ends are those of the migration that is to be reverted or confirmed."""
        self.ready()
        self.admin.compute.migrate_server(self.uuid)
        self.comes_to("VERIFY_RESIZE")
        self.is_alive(self.ends.target)

    def host_is_down(self) -> None:
        """Its agent is dead, and an operator says that it is off; the guest runs on."""
        self.at_rest()
        asyncio.run(self.ends.cloud.agents[self.ends.source.name].kill())
        self._say_down(True)

    def _say_down(self, down: bool) -> None:
        service = next(self.admin.compute.services(binary="nova-compute", host=self.ends.source.name))
        self.admin.compute.update_service_forced_down(service, forced=down)

    # ---- the moves ----

    def live_migrate(self) -> None:
        self.admin.compute.live_migrate_server(self.uuid, host=None, block_migration="auto")

    def migrate(self) -> None:
        self.admin.compute.migrate_server(self.uuid)

    def revert(self) -> None:
        self.admin.compute.revert_server_resize(self.uuid)

    def confirm(self) -> None:
        self.admin.compute.confirm_server_resize(self.uuid)

    def evacuate(self) -> None:
        path = f"/servers/{self.uuid}/action"
        answer = self.admin.compute.post(path, json={"evacuate": {}}, microversion="2.94")
        assert answer.status_code == 200, answer.text

    def memory_is_sent(self) -> bool:
        job = self.ends.source.run("virsh", "-q", "-c", "qemu:///system", "domjobinfo", self.uuid)
        return "Memory processed" in job

    def files_are_sent(self) -> bool:
        return any((self.instances(self.ends.target) / self.uuid).glob("*.part"))

    # ---- after a point ----

    def wait_for_the_end(self) -> list[ActionRow]:
        """What is still open after a while."""
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self.open_actions(), PEACE)
        return self.open_actions()

    def host_is_back(self) -> None:
        """The one that was down, if it was."""
        was_down = not self.ends.cloud.agents[self.ends.source.name].alive
        if was_down:
            asyncio.run(self.ends.cloud.start_agent(self.ends.source))
        wait_until(lambda: not self.read(_owed), PEACE, "a host still owes something")
        if was_down:
            self._say_down(False)

    def tidy(self) -> None:
        """At rest and running, whatever the last move has made of it."""
        status = self.admin.compute.get_server(self.uuid).status
        if status == "VERIFY_RESIZE":
            self.confirm()
            assert self.wait_for_the_end() == []
        elif status == "ERROR":
            self.admin.compute.reboot_server(self.uuid, "HARD")
            assert self.wait_for_the_end() == []
        elif status == "SHUTOFF":
            self.start()
        self.comes_to("ACTIVE")


def _tags(host: Host, ports: list[str]) -> list[Any]:
    """The VLANs of those of these ports that are on its switch."""
    named = ("--columns=name,external_ids", "list", "Interface")
    tagged = ("--columns=name,tag", "list", "Port")
    said = host.run("ovs-vsctl", "--format=json", "--", *named, "--", *tagged)
    interfaces, switch_ports = (json.loads(line)["data"] for line in said.splitlines())
    mine = {name for name, (_, ids) in interfaces if dict(ids).get("iface-id") in ports}
    return [tag for name, tag in switch_ports if name in mine]


def _owed(tx: Tx) -> int:
    return int(tx.scalar(select(func.count()).select_from(leftovers)))


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    pace = Pace(report_interval=1, service_down_time=6, lease=3.0)
    with two_hosts(libvirt=LIBVIRT, more=MORE, disk_mib=1100, pace=pace) as cloud:
        yield Stage(cloud, cloud.directory)
