"""Hosts as the scheduler sees them, and servers looking for one."""

from __future__ import annotations

import random
from typing import Any

from kilonova.db.aggregates import Aggregate
from kilonova.model.host import Host, Inventory
from kilonova.scheduler.columns import Columns, Provision
from kilonova.scheduler.decision import Decider
from kilonova.scheduler.filters.registry import known
from kilonova.scheduler.options import Options, default_options
from kilonova.scheduler.question import Question
from kilonova.scheduler.request import Explanation, ServerRequest
from kilonova.scheduler.wanted import Group, Wanted

NOW = 1_000_000_000_000_000
PROVISION = ("inventories", "used", "traits", "instances")
STOCK = {
    "VCPU": Inventory(total=4, allocation_ratio=2.0),
    "MEMORY_MB": Inventory(total=4096, reserved=512),
    "DISK_GB": Inventory(total=100, max_unit=50),
}


def host(name: str = "h1", **more: Any) -> Host:
    values: dict[str, Any] = {
        "id": 1,
        "service_uuid": f"service-{name}",
        "compute_id": f"node-{name}",
        "host": name,
        "hypervisor_hostname": f"{name}.example",
        "hypervisor_type": "QEMU",
        "hypervisor_version": 7_002_001,
        "host_ip": "192.0.2.1",
        "cpu_info": {"arch": "x86_64"},
        "last_seen_at": NOW,
        **more,
    }
    return Host(**values)


class World:
    """Columns that a test fills by hand, and what is decided on them."""

    def __init__(self, **options: Any) -> None:
        self.options: Options = default_options(**options)
        self.columns = Columns("nova")
        self.aggregates: list[Aggregate] = []
        self.decider = Decider(self.options, random.Random(1))

    def add(self, name: str = "h1", *, io_ops: int = 0, pci_free: int = 0, **more: Any) -> int:
        """``inventories``, ``used``, ``traits`` and ``instances`` are its provider's; ``up`` False: it is not
        heard of; the rest is the host's own."""
        provision = {"inventories": STOCK, "used": {}, "traits": frozenset(), "instances": 0}
        provision |= {key: more.pop(key) for key in PROVISION if key in more}
        if not more.pop("up", True):
            more["last_seen_at"] = NOW - 61_000_000
        row = self.columns.put_host(host(name, **more))
        self.columns.put_provision(row, Provision(**provision))
        self.columns.io_ops[row], self.columns.pci_free[row] = io_ops, pci_free
        return row

    def aggregate(self, *hosts: str, name: str = "", **metadata: str) -> None:
        number = len(self.aggregates) + 1
        self.aggregates.append(
            Aggregate(
                id=number,
                uuid=f"aggregate-{number}",
                name=name or f"a{number}",
                availability_zone=None,
                metadata=metadata,
                created_at=1,
                updated_at=None,
                hosts=hosts,
            )
        )
        self.columns.put_aggregates(self.aggregates)

    def question(self, wanted: ServerRequest, **more: Any) -> Question:
        return Question(wanted, self.columns, self.options, NOW, **more)

    def ranked(self, wanted: ServerRequest) -> list[str]:
        """The names of the hosts that would do, in the order in which they are tried."""
        _, candidates = self.decider.decide(self.question(wanted))
        return [each.host for each in candidates]

    def explain(self, wanted: ServerRequest) -> Explanation:
        """What is said of it; the hosts that are let through must be those without a reason."""
        told = self.decider.explain(self.question(wanted))
        good = {each.host for each in told.ranked}
        assert sorted(self.ranked(wanted)) == sorted(good)
        assert good.isdisjoint(told.reasons)
        if not wanted.forced:
            assert good | told.reasons.keys() == self.columns.row_of.keys()
            assert sum(told.counts.values()) == len(told.reasons)
        return told

    def why_not(self, wanted: ServerRequest, name: str = "h1") -> str:
        """The reason for the host; empty when it would do."""
        return self.explain(wanted).reasons.get(name, "")


def request(**more: Any) -> ServerRequest:
    """``resources``, ``required`` and ``forbidden`` are what is wanted of placement."""
    resources = more.pop("resources", {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 1})
    required, forbidden = more.pop("required", ()), more.pop("forbidden", ())
    wanted = Wanted(root=Group(resources, frozenset(required), frozenset(forbidden)))
    return ServerRequest(**{"uuid": "u1", "project_id": "p1", "wanted": wanted, **more})


def with_filters(*names: str, **options: Any) -> World:
    """A world in which these filters are asked, and no others but those that always are."""
    assert set(names) <= known().keys()
    return World(enabled_filters=names, **options)
