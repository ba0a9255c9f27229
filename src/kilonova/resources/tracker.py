"""A host's figures, as Nova's resource tracker and its statistics name them.

Nothing is counted along: totals and what is used are placement's, the rest is made of the servers that there
are.  So the figures are the sum of the claims, whatever has died in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec

from kilonova.db import host_resources, host_stats, hosts
from kilonova.db.engine import Tx
from kilonova.db.host_stats import Count, ServerFacts
from kilonova.model.host_resources import HostResources
from kilonova.model.states import Task, Vm
from kilonova.resources.numa_fit import Use, use_of
from kilonova.resources.pci_fit import Pool, pools
from kilonova.services.placement.port import ProviderSummary

HEAVY = frozenset(
    {
        Task.RESIZE_MIGRATING,
        Task.REBUILDING,
        Task.RESIZE_PREP,
        Task.IMAGE_SNAPSHOT,
        Task.IMAGE_BACKUP,
        Task.RESCUING,
        Task.UNSHELVING,
    }
)
"""What keeps a host's disks busy, beside building."""

PROCESSORS = ("VCPU", "PCPU")


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has and what of it is used, what the host keeps for itself included (RT-15).

    CPUs are those of both kinds: shared ones and those for pinning.
    """

    vcpus: int = 0
    vcpus_used: int = 0
    memory_mb: int = 0
    memory_mb_used: int = 0
    local_gb: int = 0
    local_gb_used: int = 0
    running_vms: int = 0
    current_workload: int = 0

    @property
    def free_ram_mb(self) -> int:
        return self.memory_mb - self.memory_mb_used

    @property
    def free_disk_gb(self) -> int:
        return self.local_gb - self.local_gb_used

    @property
    def disk_available_least(self) -> int:
        """Disks are booked at their full size, so no more than this can be asked for at any time."""
        return self.free_disk_gb


def figures(provider: ProviderSummary | None, count: Count) -> Figures:
    """Of a host's root provider; None: placement does not know it."""
    return Figures(
        vcpus=_total(provider, *PROCESSORS),
        vcpus_used=_used(provider, *PROCESSORS),
        memory_mb=_total(provider, "MEMORY_MB"),
        memory_mb_used=_used(provider, "MEMORY_MB"),
        local_gb=_total(provider, "DISK_GB"),
        local_gb_used=_used(provider, "DISK_GB"),
        running_vms=count.servers,
        current_workload=count.busy,
    )


def _total(provider: ProviderSummary | None, *classes: str) -> int:
    found = provider.inventories if provider is not None else {}
    return sum(found[name].total for name in classes if name in found)


def _used(provider: ProviderSummary | None, *classes: str) -> int:
    if provider is None:
        return 0
    reserved = sum(provider.inventories[name].reserved for name in classes if name in provider.inventories)
    return reserved + sum(provider.used.get(name, 0) for name in classes)


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the servers of one host are doing (inventory ST-1 to ST-6)."""

    num_instances: int = 0
    vm_states: Mapping[str, int] = {}
    task_states: Mapping[str | None, int] = {}
    os_types: Mapping[str | None, int] = {}
    projects: Mapping[str, int] = {}
    failed_builds: int = 0

    @property
    def workload(self) -> int:
        """Servers with something going on."""
        return sum(number for task, number in self.task_states.items() if task is not None)

    @property
    def io_workload(self) -> int:
        """Servers that keep the host's disks busy."""
        heavy = sum(number for task, number in self.task_states.items() if task in HEAVY)
        return heavy + self.vm_states.get(Vm.BUILDING, 0)

    def by_name(self, of_driver: Mapping[str, object] | None = None) -> dict[str, object]:
        """Under Nova's names, with what a driver adds.  Raises ValueError for what is no mapping (ST-7)."""
        if of_driver is not None and not isinstance(of_driver, Mapping):
            raise ValueError(f"statistics of a driver are a mapping, not {type(of_driver).__name__}")
        named: dict[str, object] = {
            "num_instances": self.num_instances,
            "io_workload": self.io_workload,
            "failed_builds": self.failed_builds,
        }
        for prefix, counted in (
            ("num_vm_", self.vm_states.items()),
            ("num_task_", self.task_states.items()),
            ("num_os_type_", self.os_types.items()),
            ("num_proj_", self.projects.items()),
        ):
            named.update((f"{prefix}{name}", number) for name, number in counted)
        return {**named, **(of_driver or {})}


def statistics(servers: Iterable[ServerFacts], failed_builds: int = 0) -> Statistics:
    there = list(servers)
    return Statistics(
        num_instances=len(there),
        vm_states=Counter(each.vm_state for each in there),
        task_states=Counter(each.task_state for each in there),
        os_types=Counter(each.os_type for each in there),
        projects=Counter(each.project_id for each in there),
        failed_builds=failed_builds,
    )


class Tracked(msgspec.Struct, frozen=True, kw_only=True):
    """One host in full; cells and devices are there as far as the host reports any."""

    statistics: Statistics
    resources: HostResources
    numa: Use
    pools: tuple[Pool, ...]


def track(tx: Tx, host: str) -> Tracked | None:
    """A host by its name; None for one that is unknown."""
    found = hosts.show(tx, host)
    if found is None:
        return None
    resources = host_resources.read(tx, found.compute_id)
    return Tracked(
        statistics=statistics(host_stats.servers(tx, host), found.failed_builds),
        resources=resources,
        numa=use_of(resources.guests),
        pools=pools(resources.devices),
    )
