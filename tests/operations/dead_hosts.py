"""A cloud of simulated hosts that lose power or connection, and come back; and what there is anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from sqlalchemy import select, update

from kilonova.app import EmbeddedCloud, new_uuid
from kilonova.db import hosts, instances, leftovers, migrations, server_groups
from kilonova.db.engine import Database, Tx
from kilonova.db.leftovers import Leftover
from kilonova.db.server_groups import ServerGroup
from kilonova.db.tables.compute import hosts as hosts_table
from kilonova.db.tables.network import port_bindings, ports
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.migration import Migration
from kilonova.model.states import Power, Vm
from kilonova.model.volume import Attachment
from kilonova.operations import create, evacuate
from kilonova.operations.requests import CreateServer
from kilonova.rpc.local import Hands
from kilonova.testing import audit
from kilonova.testing.embedded import delivered, embedded, member, server, settled
from kilonova.testing.simulated_hosts import SimulatedHost, _add, first_host, simulated_hosts
from kilonova.virt.fake.guests import PREPARED, GuestFile

LONG_AGO = 3600 * 1_000_000
OPTIONS: dict[str, dict[str, object]] = {
    "DEFAULT": {"host": "h1", "vif_plugging_timeout": 5, "report_interval": 3600},
    "fake": {"vcpus": 1000, "memory_mb": 2_000_000, "disk_gb": 100_000},
}


class Everywhere(msgspec.Struct, frozen=True, kw_only=True):
    """All that there is of one server: host -> its guest's power state, host -> its plugged ports, port ->
    where it is bound, and what its consumers hold, by host."""

    guests: dict[str, int]
    plugged: dict[str, int]
    bound: frozenset[str]
    held: frozenset[str]
    held_by_moves: frozenset[str]


@dataclass
class AbsentHost:
    """A host that is off while the cloud is started: its guests are in its file."""

    name: str
    file: Path
    compute_id: str

    def state(self, uuid: str) -> int | None:
        file = GuestFile(self.file)
        try:
            return file.state(uuid)
        finally:
            file.close()


@dataclass
class Hosts:
    """``hosts`` are chosen in the order of their names."""

    cloud: EmbeddedCloud
    hosts: dict[str, SimulatedHost]
    absent: dict[str, AbsentHost] = field(default_factory=dict)  # which have not started with this cloud
    _off: dict[str, Hands] = field(default_factory=dict)

    # ---- what becomes of hosts ----

    async def lose_power(self, name: str) -> None:
        """Its guests are off, nobody answers there, and it is known to be down."""
        for uuid, state in self.hosts[name].driver.guest_file.everything().items():
            if state in (Power.RUNNING, Power.PAUSED):
                self.hosts[name].driver.guest_file.put(uuid, Power.SHUTDOWN)
        await self.cut_off(name)

    async def cut_off(self, name: str) -> None:
        """Nobody hears of it any more; its guests run on."""
        self.silence(name)
        await self.set_seen(name, self.cloud.clock.now() - LONG_AGO)

    def silence(self, name: str) -> None:
        """It does not answer, and nobody has noticed so far."""
        if name not in self._off:
            self._off[name] = self.cloud.local._hands.pop(name)

    async def come_back(self, name: str) -> None:
        if name in self.absent:
            del self.absent[name]
            self.hosts[name] = await _add(self.cloud, name, int(name[1:]) - 2, 1_000_000)
        if name in self._off:
            self.cloud.local.add(name, self._off.pop(name))
        await self.set_seen(name, self.cloud.clock.now())

    async def set_seen(self, name: str, moment: int) -> None:
        table = hosts_table
        await self.cloud.db.write(
            lambda tx: tx.run(update(table).where(table.c.host == name).values(last_seen_at=moment))
        )

    async def force_down(self, name: str, down: bool = True) -> None:
        await self.cloud.db.write(lambda tx: hosts.set_forced_down(tx, name, down, self.cloud.clock.now()))
        self.cloud.scheduler.forget()

    # ---- servers ----

    def admin(self) -> RequestContext:
        assert self.cloud.accounts is not None
        return RequestContext(
            request_id="req-admin",
            user_id=self.cloud.accounts.users["admin"],
            project_id=self.cloud.accounts.projects["admin"],
            roles=frozenset({"admin"}),
        )

    async def boot(self, **more: object) -> str:
        """A server that runs; on h1, if there is room."""
        request = CreateServer(
            name="s",
            flavor_id="42",
            image_id=self.cloud.example_image,
            **more,  # type: ignore[arg-type]
        )
        (made,) = await create.submit(self.cloud.cloud, member(self.cloud), request)
        found = await settled(self.cloud, made.uuid, 60)
        assert found.vm_state == Vm.ACTIVE, found.fault
        return made.uuid

    async def change(self, uuid: str, **values: object) -> None:
        """Set what an operation would."""
        await self.cloud.db.write(
            lambda tx: instances.update(tx, uuid, expect_task=instances.ANY, **values)  # type: ignore[arg-type]
        )

    async def group(self, policy: str) -> str:
        """A server group of the project; its uuid."""
        context = member(self.cloud)
        made = ServerGroup(
            id=0,
            uuid=new_uuid(),
            project_id=str(context.project_id),
            user_id=context.user_id,
            name="g",
            policy=policy,
            rules={},
            created_at=self.cloud.clock.now(),
        )
        await self.cloud.db.write(lambda tx: server_groups.create(tx, made, limit=-1, user_limit=None))
        return made.uuid

    async def fill(self, name: str) -> None:
        """Nothing more fits there."""
        report = await self.hosts[name].driver.report()
        full = {
            each: msgspec.structs.replace(has, reserved=has.total) for each, has in report.inventories.items()
        }
        await self.cloud.placement.report(report.compute_id, name, full, ())
        self.cloud.scheduler.forget()

    async def wires_nothing(self, name: str) -> None:
        """Its layer-2 agent is gone."""

        async def nothing(vif: object) -> None:
            return None

        self.hosts[name].plugger._on_plugged = nothing

    async def evacuate(self, uuid: str, **how: object) -> Instance:
        """Ask for it, and wait for its end."""
        await self.ask(uuid, **how)
        return await settled(self.cloud, uuid, 60)

    async def ask(self, uuid: str, **how: object) -> None:
        found = await server(self.cloud, uuid)
        await evacuate.submit(self.cloud.cloud, self.admin(), found, **how)  # type: ignore[arg-type]

    async def migrations(self, uuid: str) -> list[Migration]:
        """The oldest first."""
        return await self.cloud.db.read(
            lambda tx: migrations.page(tx, {"instance_uuid": uuid}, newest_first=False)
        )

    async def owed(self, host: str) -> list[Leftover]:
        return await self.cloud.db.read(lambda tx: leftovers.of_host(tx, host))

    # ---- what there is ----

    async def everywhere(self, uuid: str) -> Everywhere:
        names = {each.compute_id: each.name for each in (*self.hosts.values(), *self.absent.values())}
        query = select(ports.c.host).where(ports.c.device_id == uuid)
        bound = {row[0] for row in await self.cloud.db.read(lambda tx: tx.all(query))}
        moves: set[str] = set()
        for each in await self.migrations(uuid):
            moves |= set(await self.cloud.placement.held(each.uuid))
        states = {name: host.driver.guest_file.state(uuid) for name, host in self.hosts.items()}
        states |= {name: host.state(uuid) for name, host in self.absent.items()}
        plugged = {
            name: sum(owner == uuid for owner in host.plugger.plugged().values())
            for name, host in self.hosts.items()
        }
        return Everywhere(
            guests={name: state for name, state in states.items() if state is not None},
            plugged={name: count for name, count in plugged.items() if count},
            bound=frozenset(bound),
            held=frozenset(names[each] for each in await self.cloud.placement.held(uuid)),
            held_by_moves=frozenset(names[each] for each in moves),
        )

    async def cleared(self) -> int:
        """Have hosts that can be heard be rid of what they owe."""
        assert self.cloud.clearing is not None
        return await self.cloud.clearing.look()

    async def assert_only_on(
        self, uuid: str, host: str, power: int = Power.RUNNING, *, plugged: bool | None = True
    ) -> None:
        """The server is on that host and nothing of it is anywhere else.

        ``plugged`` None: its ports need not be on that switch, which has forgotten them with its process.
        """
        found = await self.everywhere(uuid)
        if plugged is None:
            found = msgspec.structs.replace(found, plugged={host: 1})
        assert found == Everywhere(
            guests={host: power},
            plugged={host: 1},
            bound=frozenset({host}),
            held=frozenset({host}),
            held_by_moves=frozenset(),
        )

    async def complaints(self) -> list[str]:
        """Of an idle cloud; also a guest on two hosts, or on another than its server's."""
        await delivered(self.cloud)
        found: dict[str, dict[str, int]] = {}
        for name, host in self.hosts.items():
            for uuid, state in host.driver.guest_file.everything().items():
                found.setdefault(uuid, {})[name] = state
        return [*await self.cloud.db.read(lambda tx: _compared(tx, found)), *await self.other_disks()]

    async def misplaced_volumes(self) -> list[str]:
        """Complaints about volumes only."""
        found = await self.cloud.db.read(lambda tx: list(audit.misattached(tx, audit.living(tx))))
        return [*found, *await self.other_disks()]

    async def other_disks(self) -> list[str]:
        """Guests with other volumes than their servers have, or with some on another host."""
        disks = [
            (uuid, name, host.driver.guest_file.volumes(uuid))
            for name, host in self.hosts.items()
            for uuid in host.driver.guest_file.everything()
        ]
        return await self.cloud.db.read(lambda tx: _other_disks(tx, disks))


_BESIDES = (
    select(port_bindings.c.port_id, port_bindings.c.host, ports.c.device_id)
    .select_from(port_bindings.join(ports, ports.c.id == port_bindings.c.port_id))
    .where(port_bindings.c.host != ports.c.host)
)


def _compared(tx: Tx, there: dict[str, dict[str, int]]) -> list[str]:
    result = audit.leaks(tx, {uuid: max(states.values()) for uuid, states in there.items()})
    for port, host, uuid in tx.all(_BESIDES):
        found = instances.show(tx, uuid)
        if found is None or found.vm_state != Vm.RESIZED:  # which may be reverted
            result.append(f"port {port} has a binding to {host} besides its own")
    for uuid, states in there.items():
        found = instances.show(tx, uuid)
        if found is not None and set(states) != {found.host}:
            result.append(f"{uuid} is on {found.host} and its guest on {sorted(states)}")
    return result


def _other_disks(tx: Tx, there: list[tuple[str, str, tuple[Attachment, ...]]]) -> list[str]:
    result = []
    for uuid, name, volumes in there:
        found = instances.show(tx, uuid)
        mine = found.volumes if found is not None and found.host == name else ()
        if volumes != mine:
            result.append(f"the guest {uuid} on {name} has {volumes}, and its server {mine}")
    return result


def runs_on(found: Everywhere) -> set[str]:
    """Where the guest runs."""
    return {name for name, state in found.guests.items() if state == Power.RUNNING}


def prepared(found: Everywhere) -> set[str]:
    """Where only its files are."""
    return {name for name, state in found.guests.items() if state == PREPARED}


@contextlib.asynccontextmanager
async def opened(
    state_dir: Path,
    database: Callable[[], Database] | None = None,
    off: tuple[str, ...] = (),
    **options: dict[str, object],
) -> AsyncIterator[Hosts]:
    """h1, h2 and h3; ``off`` are those of them (but for h1) that are without power when it is started."""
    merged = {group: {**values, **options.pop(group, {})} for group, values in OPTIONS.items()} | options
    async with embedded(state_dir, database=database, **merged) as cloud:
        on = [name for name in ("h2", "h3") if name not in off]
        async with simulated_hosts(cloud, *on) as others:
            by_name = {each.name: each for each in (first_host(cloud), *others)}
            made = Hosts(cloud, by_name, {name: _absent(cloud, name) for name in off})
            yield made
            for each in set(by_name) | set(made.hosts):
                if each not in on and each != "h1":
                    await made.hosts[each].agent.shut_down_agent()


def _absent(cloud: EmbeddedCloud, name: str) -> AbsentHost:
    path = cloud.state.private("agent") / name
    return AbsentHost(name, path / "fake-guests.db", (path / "compute_id").read_text())
