"""Measure what is given away one by one: fits, claims, decisions, the audit and lists of hypervisors.

    python -m bench.resources [--hosts 1000] [--servers 10000] [--postgresql CONNINFO]

All in this process, on a database of its own.  Figures are of the wall clock, and where it is said of the
process's CPU (its database threads included).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from bench.run import percentile
from kilonova.api.views.hypervisors import FULL, Hypervisor
from kilonova.cli.doctor import examine
from kilonova.clock import SystemClock
from kilonova.db import host_report, host_stats, hosts, instances, quotas
from kilonova.db.engine import Database, Tx
from kilonova.db.schema import bring_up
from kilonova.db.sqlite import SqliteDatabase
from kilonova.model.flavor import Flavor
from kilonova.model.host import HostReport, Inventory
from kilonova.model.host_resources import HostResources, Wanted
from kilonova.model.instance import Instance
from kilonova.model.numa import HostCell, HostTopology, Pages
from kilonova.model.pci import HeldDevice, PciDevice
from kilonova.resources.claims import Claims
from kilonova.resources.host_fit import fit_host
from kilonova.resources.numa_fit import DoesNotFit
from kilonova.resources.pci_request import read_aliases
from kilonova.resources.tracker import figures
from kilonova.scheduler.options import default_options
from kilonova.scheduler.request import Candidate, ServerRequest
from kilonova.scheduler.select import Scheduler
from kilonova.scheduler.wanted import wanted_of
from kilonova.services.placement.builtin import BuiltinPlacement

ALIASES = read_aliases(['{"name": "nic", "vendor_id": "8086", "product_id": "1515"}'])
PLAIN = Flavor(id=1, flavorid="1", name="plain", vcpus=1, memory_mb=512, root_gb=1)
PINNED = Flavor(
    id=2,
    flavorid="2",
    name="pinned",
    vcpus=4,
    memory_mb=4096,
    root_gb=1,
    extra_specs={"hw:cpu_policy": "dedicated", "hw:mem_page_size": "large", "pci_passthrough:alias": "nic:1"},
)


def topology(cells: int = 2, cpus: int = 32) -> HostTopology:
    """Cells of two threads a core, 128 GiB and 32 GiB of them in pages of 2 MiB; half the CPUs are shared."""
    made = []
    for number in range(cells):
        numbers = tuple(range(number * cpus, (number + 1) * cpus))
        made.append(
            HostCell(
                id=number,
                shared=numbers[cpus // 2 :],
                dedicated=numbers[: cpus // 2],
                memory_mib=128 << 10,
                siblings=tuple(numbers[at : at + 2] for at in range(0, cpus, 2)),
                pages=(Pages(size_kib=4, total=(96 << 20) // 4), Pages(size_kib=2048, total=16 << 10)),
            )
        )
    return HostTopology(cells=tuple(made))


def devices(number: int = 8) -> tuple[PciDevice, ...]:
    return tuple(
        PciDevice(address=f"0000:{n:02x}:00.0", vendor_id="8086", product_id="1515", numa_cell=n % 2)
        for n in range(1, number + 1)
    )


def report(number: int) -> HostReport:
    name = f"host-{number:05}"
    return HostReport(
        host=name,
        compute_id=str(uuid.uuid5(uuid.NAMESPACE_DNS, name)),
        hypervisor_hostname=name,
        hypervisor_type="fake",
        hypervisor_version=1,
        host_ip="192.0.2.1",
        inventories={
            "VCPU": Inventory(total=32, allocation_ratio=4.0),
            "PCPU": Inventory(total=32),
            "MEMORY_MB": Inventory(total=256 << 10),
            "DISK_GB": Inventory(total=10_000),
        },
        cpu_info={"arch": "x86_64", "features": [f"f{n}" for n in range(60)]},
        numa=topology(),
        pci_devices=devices(),
    )


@contextlib.contextmanager
def timed(name: str, amount: int = 1) -> Iterator[None]:
    begun, used = time.perf_counter(), time.process_time()
    yield
    seconds, busy = time.perf_counter() - begun, time.process_time() - used
    each = f", {busy / amount * 1e6:,.0f} us of CPU each" if amount > 1 else ""
    print(f"{name:58} {seconds * 1000:10,.1f} ms, {busy:.2f} s of CPU{each}")


def fits() -> None:
    """One host, from empty to full and then refusing."""
    wanted = Claims(None, None, aliases=ALIASES).wanted(PINNED, {})  # type: ignore[arg-type]
    for cells in (1, 2, 8):
        host = HostResources(
            compute_id="c",
            topology=topology(cells),
            devices=tuple(HeldDevice(device=each) for each in devices()),
        )
        taken: list[Any] = []
        while True:
            try:
                taken.append(fit_host(_with(host, taken), wanted))
            except DoesNotFit:
                break
        half = _with(host, taken[: len(taken) // 2])
        with timed(f"fit on a half full host of {cells} cells", 200):
            for _ in range(200):
                fit_host(half, wanted)
        full = _with(host, taken)
        with timed(f"no on a full host of {cells} cells ({len(taken)} servers)", 200):
            for _ in range(200):
                with contextlib.suppress(DoesNotFit):
                    fit_host(full, wanted)


def _with(host: HostResources, taken: list[Any]) -> HostResources:
    addresses = {device.address for each in taken for device in each.devices}
    held = tuple(
        HeldDevice(device=each.device, holder="x" if each.device.address in addresses else None)
        for each in host.devices
    )
    return HostResources(
        compute_id="c", topology=host.topology, guests=tuple(each.numa for each in taken), devices=held
    )


async def populate(
    db: Database, placement: BuiltinPlacement, reports: list[HostReport], servers: int
) -> None:
    now = SystemClock().now()
    for told in reports:
        await db.write(lambda tx, told=told: (hosts.upsert(tx, told, now), host_report.take_over(tx, told)))  # type: ignore[misc]
        await placement.report(told.compute_id, told.hypervisor_hostname, told.inventories, ())
    claims = Claims(db, placement, aliases=ALIASES)
    made: list[Instance] = []
    for number in range(servers):
        flavor = PINNED if number < servers // 10 else PLAIN
        told = reports[number % len(reports)]
        server = Instance(
            uuid=str(uuid.uuid4()),
            project_id=f"p{number % 50}",
            user_id="u",
            display_name=f"s{number}",
            vm_state="active",
            flavor=flavor,
            host=told.host,
        )
        amounts = wanted_of(flavor, {}, root_disk=False).together()
        found = await claims.claim(
            server.uuid, told.compute_id, claims.wanted(flavor, {}), {told.compute_id: amounts}, "p", "u"
        )
        assert not isinstance(found, str), found
        made.append(server)
    unlimited = quotas.Limits({}, {})

    def write(tx: Tx) -> None:
        for server in made:
            instances.insert(tx, server)
            flavor = server.flavor
            quotas.reserve(
                tx, server.project_id, "u", unlimited, instances=1, cores=flavor.vcpus, ram=flavor.memory_mb
            )

    await db.write(write)


async def listing(db: Database, placement: BuiltinPlacement) -> int:
    """What ``GET /os-hypervisors/detail`` reads and makes, but for HTTP and JSON."""

    def read(tx: Tx) -> Any:
        return hosts.list_all(tx), host_stats.counts(tx)

    found, counts = await db.read(read)
    providers = {one.uuid: one for one in await placement.providers()}
    call: Any = type("Call", (), {"version": 87, "may": lambda *args: True})()
    render = FULL.bind(call)
    return len(
        [
            render(
                Hypervisor(
                    host=host,
                    up=True,
                    now=0,
                    figures=figures(
                        providers.get(host.compute_id), counts.get(host.host, host_stats.Count())
                    ),
                )
            )
            for host in found
        ]
    )


async def repeated(name: str, times: int, call: Callable[[], Awaitable[Any]]) -> None:
    took, used = [], time.process_time()
    for _ in range(times):
        begun = time.perf_counter()
        await call()
        took.append((time.perf_counter() - begun) * 1000)
    busy = (time.process_time() - used) / times * 1000
    print(
        f"{name:58} p50 {percentile(took, 0.5):8.2f} ms, p99 {percentile(took, 0.99):8.2f} ms, "
        f"{busy:.2f} ms of CPU each"
    )


async def decisions(db: Database, placement: BuiltinPlacement) -> None:
    scheduler = Scheduler(
        db, placement, SystemClock(), default_options(service_down_time=86_400), chance=random.Random(1)
    )
    claims = Claims(db, placement, aliases=ALIASES)
    special = claims.wanted(PINNED, {})
    numbers = iter(range(1_000_000))

    async def decide(wanted: Wanted, book: bool) -> None:
        request = ServerRequest(
            uuid=f"new-{next(numbers)}", project_id="p", wanted=wanted_of(PINNED, {}), special=wanted
        )

        async def claim(candidate: Candidate) -> str | None:
            if not book:
                return None
            found = await claims.claim(
                request.uuid, candidate.compute_id, candidate.special, candidate.allocations, "p", "u"
            )
            return found if isinstance(found, str) else None

        await scheduler.select(request, claim)

    begun = time.perf_counter()
    await decide(special, False)
    print(f"{'first decision on cells and devices':58} {(time.perf_counter() - begun) * 1000:10,.1f} ms")
    await repeated("decision on cells and devices, nothing booked", 50, lambda: decide(special, False))
    await repeated("decision on cells and devices, with its claim", 200, lambda: decide(special, True))


@contextlib.asynccontextmanager
async def database(conninfo: str | None) -> AsyncIterator[Database]:
    with tempfile.TemporaryDirectory() as directory:
        if conninfo:
            from kilonova.db.postgresql import PostgresqlDatabase

            db: Database = PostgresqlDatabase(conninfo)
        else:
            db = SqliteDatabase(Path(directory) / "bench.db", SystemClock())
        await bring_up(db)
        try:
            yield db
        finally:
            await db.close()


async def run(number: int, servers: int, conninfo: str | None) -> None:
    fits()
    async with database(conninfo) as db:
        placement = BuiltinPlacement(db, SystemClock())
        reports = [report(each) for each in range(number)]
        with timed(f"{number} hosts and {servers} claims, a tenth of them pinned", servers):
            await populate(db, placement, reports, servers)
        await repeated(f"hypervisors in detail, {number} hosts", 20, lambda: listing(db, placement))
        with timed(f"audit of {servers} servers"):
            diagnosis = await db.read(examine)
        assert diagnosis.servers == servers and not diagnosis.found, diagnosis.found[:5]
        await decisions(db, placement)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--servers", type=int, default=10_000)
    parser.add_argument("--postgresql", help="conninfo of an empty database; else SQLite in a file")
    given = parser.parse_args()
    asyncio.run(run(given.hosts, given.servers, given.postgresql))


if __name__ == "__main__":
    main()
