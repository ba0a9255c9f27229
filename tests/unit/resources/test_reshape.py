"""Which allocations follow inventories that have moved within a host's tree."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Conflict
from kilonova.model.host import HostReport, Inventory, ProviderReport
from kilonova.model.pci import PciDevice
from kilonova.resources.reshape import Following, Reshape, Tree

VCPU = Inventory(total=8)
GPU = Inventory(total=4)


def report(
    root: dict[str, Inventory], devices: tuple[PciDevice, ...] = (), **below: dict[str, Inventory]
) -> HostReport:
    return HostReport(
        host="h1",
        compute_id="cn",
        hypervisor_hostname="h1",
        hypervisor_type="fake",
        hypervisor_version=1,
        host_ip="",
        inventories=root,
        providers=tuple(
            ProviderReport(uuid=name, name=name, parent="cn", inventories=stock)
            for name, stock in below.items()
        ),
        pci_devices=devices,
    )


def booked(held: dict[str, Any], provider: str, name: str) -> int:
    return sum(each.get(provider, {}).get(name, 0) for each in held.values())


class Before(msgspec.Struct):
    """A tree, and all that consumers hold."""

    tree: Tree
    held: dict[str, Any]


def before(held: dict[str, Any], of_devices: set[str] | None = None, **stock: dict[str, Inventory]) -> Before:
    used = {
        provider: {name: booked(held, provider, name) for name in inventories}
        for provider, inventories in stock.items()
    }
    return Before(Tree(inventories=stock, used=used, of_devices=frozenset(of_devices or ())), held)


def reshape(known: Before, new: HostReport, devices: dict[str, tuple[str, ...]]) -> Reshape | None:
    """As placement does it: only those are looked at who are concerned."""
    what = Following(new, devices)
    gone = {provider for provider, _ in what.gone(known.tree)}
    concerned = what.owners(known.tree) | {who for who, held in known.held.items() if gone & held.keys()}
    return what.reshape(known.tree, {who: known.held[who] for who in concerned & known.held.keys()})


@pytest.mark.capability("RT-27")
def test_a_class_that_has_moved_takes_what_is_held_with_it() -> None:
    held = {
        "s1": {"cn": {"VCPU": 2, "VGPU": 1}},
        "s2": {"cn": {"VGPU": 3}, "elsewhere": {"DISK_GB": 1}},
        "s3": {"cn": {"VCPU": 1}},
    }
    known = before(held, cn={"VCPU": VCPU, "VGPU": GPU})
    found = reshape(known, report({"VCPU": VCPU}, gpu0={"VGPU": Inventory(total=1)}, gpu1={"VGPU": GPU}), {})
    assert found == Reshape(
        inventories={
            "cn": {"VCPU": VCPU},
            "gpu0": {"VGPU": Inventory(total=1)},
            "gpu1": {"VGPU": GPU},
        },
        allocations={
            "s1": {"cn": {"VCPU": 2}, "gpu0": {"VGPU": 1}},
            "s2": {"gpu1": {"VGPU": 3}, "elsewhere": {"DISK_GB": 1}},
        },
    )


@pytest.mark.capability("RT-27")
def test_what_one_provider_has_no_room_for_is_spread() -> None:
    known = before({"s1": {"cn": {"VGPU": 3}}}, cn={"VGPU": GPU})
    pieces = {f"gpu{number}": {"VGPU": Inventory(total=1)} for number in range(3)}
    found = reshape(known, report({"VCPU": VCPU}, **pieces), {})
    assert found is not None
    assert found.allocations == {"s1": {name: {"VGPU": 1} for name in pieces}}


@pytest.mark.capability("RT-27")
def test_no_room_is_an_error() -> None:
    known = before({"s1": {"cn": {"VGPU": 3}}}, cn={"VGPU": GPU})
    with pytest.raises(Conflict, match=r"VGPU of the host 'h1' has moved .* no room for 1 that s1 holds"):
        reshape(known, report({}, gpu0={"VGPU": Inventory(total=2)}), {})


def test_what_was_there_already_counts_and_its_ratio_too() -> None:
    """A provider that is known keeps the inventory that placement has, an operator's ratio with it."""
    mine = Inventory(total=2, reserved=1, allocation_ratio=4.0)
    known = before(
        {"s0": {"gpu0": {"VGPU": 3}}, "s1": {"cn": {"VGPU": 1}}}, cn={"VGPU": GPU}, gpu0={"VGPU": mine}
    )
    new = report({}, gpu0={"VGPU": Inventory(total=2, reserved=1)}, gpu1={"VGPU": GPU})
    found = reshape(known, new, {})
    assert found is not None and found.allocations == {"s1": {"gpu0": {"VGPU": 1}}}
    assert found.inventories["gpu0"] == {"VGPU": mine}
    two = before({**known.held, "s1": {"cn": {"VGPU": 2}}}, cn={"VGPU": GPU}, gpu0={"VGPU": mine})
    found = reshape(two, new, {})
    assert found is not None and found.allocations == {"s1": {"gpu1": {"VGPU": 2}}}


@pytest.mark.parametrize(
    ("known", "new"),
    [
        (before({"s1": {"cn": {"VCPU": 1}}}, cn={"VCPU": VCPU}), report({"VCPU": Inventory(total=1)})),
        (before({}, cn={"VGPU": GPU}), report({}, gpu0={"VGPU": GPU})),  # nobody holds any
        (before({"s1": {"cn": {"VGPU": 1}}}, cn={"VGPU": GPU}), report({"VCPU": VCPU})),  # gone, not moved
    ],
)
def test_nothing_to_follow(known: Before, new: HostReport) -> None:
    assert reshape(known, new, {}) is None


# ---- devices ----


def device(address: str, provider: str | None) -> PciDevice:
    tags = {"rp_uuid": provider} if provider else {}
    return PciDevice(address=address, vendor_id="10de", product_id="1db4", tags=tags)


PCI = {"CUSTOM_PCI_10DE_1DB4": Inventory(total=2)}
OWNED = {"s1": ("a", "b"), "s2": ("c",), "s3": ("x",)}


@pytest.mark.capability("RT-27")
def test_devices_that_have_become_providers_are_booked() -> None:
    devices = (device("a", "rp1"), device("b", "rp1"), device("c", "rp2"), device("x", None))
    held = {name: {"cn": {"VCPU": 1}} for name in ("s1", "s2", "s3", "s4")}
    found = reshape(before(held, cn={"VCPU": VCPU}), report({"VCPU": VCPU}, devices, rp1=PCI, rp2=PCI), OWNED)
    assert found == Reshape(
        inventories={"cn": {"VCPU": VCPU}, "rp1": PCI, "rp2": PCI},
        allocations={
            "s1": {"cn": {"VCPU": 1}, "rp1": {"CUSTOM_PCI_10DE_1DB4": 2}},
            "s2": {"cn": {"VCPU": 1}, "rp2": {"CUSTOM_PCI_10DE_1DB4": 1}},
        },
    )
    again = before({**held, **found.allocations}, cn={"VCPU": VCPU}, rp1=PCI, rp2=PCI)
    assert reshape(again, report({"VCPU": VCPU}, devices, rp1=PCI, rp2=PCI), OWNED) is None


@pytest.mark.capability("RT-27")
def test_devices_that_are_no_providers_any_more_are_not_booked() -> None:
    held = {
        "s1": {"cn": {"VCPU": 1}, "rp1": {"CUSTOM_PCI_10DE_1DB4": 2}},
        "s9": {"rp1": {"CUSTOM_PCI_10DE_1DB4": 1}},  # not known to have a device: told of by the report
    }
    known = before(held, {"rp1"}, cn={"VCPU": VCPU}, rp1=PCI)
    found = reshape(known, report({"VCPU": VCPU}, (device("a", None),)), {"s1": ("a", "b")})
    assert found == Reshape(
        inventories={"cn": {"VCPU": VCPU}, "rp1": PCI}, allocations={"s1": {"cn": {"VCPU": 1}}}
    )


def test_a_consumer_without_allocations_gets_none() -> None:
    assert reshape(before({}, cn={}), report({}, (device("a", "rp1"),), rp1=PCI), {"s1": ("a",)}) is None


# ---- whatever moves ----

AMOUNTS = st.dictionaries(st.sampled_from(["VCPU", "VGPU", "FPGA"]), st.integers(1, 5), min_size=1)
STOCK = st.dictionaries(
    st.sampled_from(["VCPU", "VGPU", "FPGA"]), st.integers(1, 30).map(lambda total: Inventory(total=total))
)


def total(of: dict[str, dict[str, int]]) -> Counter[str]:
    result: Counter[str] = Counter()
    for amounts in of.values():
        result.update(amounts)
    return result


@given(
    held=st.dictionaries(
        st.sampled_from(["s1", "s2", "s3"]),
        st.dictionaries(st.sampled_from(["cn", "p0"]), AMOUNTS, min_size=1),
    ),
    stock=st.fixed_dictionaries({"cn": STOCK, "p0": STOCK, "p1": STOCK}),
)
def test_nobody_gains_or_loses_and_nothing_is_overbooked(
    held: dict[str, Any], stock: dict[str, dict[str, Inventory]]
) -> None:
    full = {name: Inventory(total=100) for name in ("VCPU", "VGPU", "FPGA")}
    known = before(held, cn=full, p0=full)
    new = report(stock["cn"], p0=stock["p0"], p1=stock["p1"])
    try:
        found = reshape(known, new, {})
    except Conflict:
        return
    after = {**held, **(found.allocations if found else {})}
    for consumer, amounts in held.items():
        assert total(after[consumer]) == total(amounts)
    somewhere = {name for each in stock.values() for name in each}
    for consumer in after.values():
        for provider, amounts in consumer.items():
            assert all(name in stock[provider] or name not in somewhere for name in amounts)
    for provider, inventories in (found.inventories if found else {}).items():
        for name, inventory in inventories.items():
            used, was = booked(after, provider, name), booked(held, provider, name)
            assert used <= inventory.capacity or used <= was


def test_only_those_are_looked_at_who_are_concerned() -> None:
    held = {"s1": {"cn": {"VCPU": 1}}, "s2": {"cn": {"VCPU": 1}}}
    known = before(held, cn={"VCPU": VCPU})
    nothing = Following(report({"VCPU": VCPU}), {"s1": ("a",)})
    assert (nothing.gone(known.tree), nothing.owners(known.tree)) == ([], set())
    devices = Following(report({"VCPU": VCPU}, (device("a", "rp1"),), rp1=PCI), {"s1": ("a",)})
    assert (devices.gone(known.tree), devices.owners(known.tree)) == ([], {"s1"})
    unused = before({}, cn={"VCPU": VCPU, "VGPU": GPU})
    assert Following(report({"VCPU": VCPU}, gpu0={"VGPU": GPU}), {}).gone(unused.tree) == []
