"""Servers that are resized on three simulated hosts, and what there must be of one in each phase."""

from __future__ import annotations

from sqlalchemy import select

from kilonova.db import quotas
from kilonova.db.tables.network import port_bindings, ports
from kilonova.model.instance import Instance
from kilonova.model.states import Power, Vm
from kilonova.operations import confirm_resize, resize, revert_resize, stop
from kilonova.testing.embedded import member, server, settled
from kilonova.virt.fake.guests import PARKED
from tests.operations.dead_hosts import Hosts

BIGGER = "1"  # m1.tiny: 512 MiB; servers are booted as m1.nano: 128 MiB


async def resized(three: Hosts, uuid: str, flavor: str = BIGGER) -> Instance:
    await ask_resize(three, uuid, flavor)
    return await settled(three.cloud, uuid, 60)


async def ask_resize(three: Hosts, uuid: str, flavor: str = BIGGER) -> None:
    found = await server(three.cloud, uuid)
    await resize.resize(three.cloud.cloud, member(three.cloud), found, flavor)


async def migrated(three: Hosts, uuid: str, host: str | None = None) -> Instance:
    found = await server(three.cloud, uuid)
    await resize.migrate(three.cloud.cloud, three.admin(), found, host=host)
    return await settled(three.cloud, uuid, 60)


async def confirmed(three: Hosts, uuid: str) -> Instance:
    await confirm_resize.submit(three.cloud.cloud, member(three.cloud), uuid)
    return await settled(three.cloud, uuid, 60)


async def reverted(three: Hosts, uuid: str) -> Instance:
    await revert_resize.submit(three.cloud.cloud, member(three.cloud), uuid)
    return await settled(three.cloud, uuid, 60)


async def stopped(three: Hosts, uuid: str) -> None:
    await stop.submit(three.cloud.cloud, member(three.cloud), uuid)
    assert (await settled(three.cloud, uuid)).vm_state == Vm.STOPPED


async def used(three: Hosts) -> dict[str, int]:
    """The quota that the project uses."""
    project = str(member(three.cloud).project_id)
    return await three.cloud.db.read(lambda tx: quotas.usage(tx, project))


def parked(three: Hosts, uuid: str) -> set[str]:
    """The hosts on which files of the server are put aside."""
    return {name for name, host in three.hosts.items() if host.driver.guest_file.is_parked(uuid)}


async def bound_besides(three: Hosts, uuid: str) -> set[str]:
    """The hosts to which the server's ports are bound besides the one that has them."""
    ids = select(ports.c.id).where(ports.c.device_id == uuid)
    query = select(port_bindings.c.host).where(port_bindings.c.port_id.in_(ids))
    return {row[0] for row in await three.cloud.db.read(lambda tx: tx.all(query))}


def assert_waits(found: Instance, host: str, power: int = Power.RUNNING) -> None:
    """It has been resized, and waits for a decision."""
    assert (found.vm_state, found.task_state, found.host) == (Vm.RESIZED, None, host), found.fault
    assert (found.power_state, found.fault, found.progress) == (power, None, 0)


async def assert_both_sides(three: Hosts, uuid: str, old: str, new: str, power: int = Power.RUNNING) -> None:
    """The guest is at the new host only, and the old one keeps its files and what it gave."""
    there = await three.everywhere(uuid)
    assert there.guests == {new: power}
    assert there.plugged == {new: 1}
    assert (there.bound, there.held, there.held_by_moves) == ({new}, {new}, {old})
    assert parked(three, uuid) == {old}
    assert await bound_besides(three, uuid) == {old} - {new}


async def assert_settled(three: Hosts, uuid: str, host: str, power: int = Power.RUNNING) -> None:
    """It is there as if it had always been, and nothing of it is anywhere else."""
    await three.assert_only_on(uuid, host, power)
    assert parked(three, uuid) == set()
    assert await bound_besides(three, uuid) == set()
    assert all(host + PARKED not in three.hosts[name].driver.guest_file.everything() for name in three.hosts)
    assert await three.complaints() == []
