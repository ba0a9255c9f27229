"""Which devices a server gets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kilonova.model.pci import PCI, PF, VF, HeldDevice, PciDevice, PciHolding, PciRequest
from kilonova.resources.pci_fit import Nearness, choose, free_devices, matches, pools, wanted_cells
from tests.unit.resources.numa import cell, host


def device(number: int, **more: Any) -> PciDevice:
    values = {"address": f"0000:{number:02x}:00.0", "vendor_id": "8086", "product_id": "1234"}
    return PciDevice(**{**values, **more})


def request(count: int = 1, policy: str | None = None, *, id: str = "r", **spec: str) -> PciRequest:
    return PciRequest(
        id=id, count=count, specs=({"vendor_id": "8086", **spec},), alias="a", numa_policy=policy
    )


def chosen(found: tuple[PciHolding, ...] | None) -> list[list[int]] | None:
    if found is None:
        return None
    return [[int(address[5:7], 16) for address in holding.addresses] for holding in found]


@pytest.mark.parametrize(
    ("spec", "tags", "expected"),
    [
        ({"vendor_id": "8086", "product_id": "1234"}, {}, True),
        ({"vendor_id": "8087"}, {}, False),
        ({"product_id": "1235"}, {}, False),
        ({"dev_type": PCI}, {}, True),
        ({"dev_type": VF}, {}, False),
        ({"physical_network": "a"}, {"physical_network": "a"}, True),
        ({"physical_network": "a"}, {"physical_network": "b"}, False),
        ({"physical_network": "a"}, {}, False),
        ({"trusted": "true"}, {"trusted": "True"}, True),
        ({"trusted": "true"}, {}, False),
        ({"trusted": "false"}, {}, True),
        ({}, {"remote_managed": "true"}, False),
        ({"remote_managed": "true"}, {"remote_managed": "true"}, True),
        ({"remote_managed": "true"}, {}, False),
        ({"resource_class": "CUSTOM_PCI_8086_1234"}, {}, True),
        ({"resource_class": "CUSTOM_NIC"}, {"resource_class": "nic"}, True),
        ({"resource_class": "CUSTOM_PCI_8086_1234"}, {"resource_class": "nic"}, False),
        ({"traits": "CUSTOM_A"}, {"traits": "a,b"}, True),
        ({"traits": "CUSTOM_A,CUSTOM_C"}, {"traits": "a,b"}, False),
        ({"live_migratable": "true"}, {"live_migratable": "yes"}, True),
        ({"live_migratable": "true"}, {}, False),
        ({"live_migratable": "false"}, {"live_migratable": "yes"}, False),
    ],
)
def test_what_a_device_must_have(spec: dict[str, str], tags: dict[str, str], expected: bool) -> None:
    assert matches(device(1, tags=tags), spec) is expected


def test_a_function_in_use_takes_its_kin() -> None:
    whole = device(1, kind=PF)
    parts = [device(2 + n, kind=VF, parent=whole.address) for n in range(2)]

    def free(holder_of: PciDevice) -> list[PciDevice]:
        return free_devices(
            [HeldDevice(device=each, holder="x" if each == holder_of else None) for each in (whole, *parts)]
        )

    assert free(whole) == []
    assert free(parts[0]) == [parts[1]]


def test_devices_that_vanished_are_not_given_away() -> None:
    assert free_devices([HeldDevice(device=device(1), reported=False)]) == []


@pytest.mark.parametrize(
    ("policy", "cells", "expected"),
    [
        ("required", {1}, [2]),
        ("required", {3}, None),
        ("legacy", {1}, [2]),
        (None, {3}, [4]),  # of unknown place
        ("preferred", {3}, [4]),
        ("preferred", {1}, [2]),
        ("socket", {0}, [2]),  # cells 0 and 1 are in one socket
        ("socket", {2}, [3]),  # cell 2 has one itself
        ("socket", {4}, None),
    ],
)
def test_how_near_devices_must_be(policy: str | None, cells: set[int], expected: list[int] | None) -> None:
    free = [device(2, numa_cell=1), device(3, numa_cell=2), device(4)]
    topology = host(*(cell(number) for number in range(6)))
    found = chosen(choose(free, [request(policy=policy)], Nearness(topology, frozenset(cells))))
    assert found == (None if expected is None else [expected])


def test_far_devices_for_who_only_prefers_near_ones() -> None:
    near = Nearness(host(cell(0), cell(1)), frozenset({0}))
    assert chosen(choose([device(1, numa_cell=1)], [request(policy="preferred")], near)) == [[1]]
    assert choose([device(1, numa_cell=1)], [request(policy="legacy")], near) is None


def test_nearness_is_nothing_to_a_guest_without_cells() -> None:
    assert chosen(choose([device(1, numa_cell=1)], [request(policy="required")])) == [[1]]


def test_who_has_a_choice_gives_way() -> None:
    free = [device(1, product_id="aaaa"), device(2, product_id="bbbb")]
    loose = request(id="loose")
    strict = request(id="strict", product_id="aaaa")
    assert chosen(choose(free, [loose, strict])) == [[2], [1]]
    assert choose(free, [loose, strict, request(id="third")]) is None


def test_alternatives() -> None:
    either = PciRequest(id="r", count=2, specs=({"product_id": "aaaa"}, {"product_id": "bbbb"}))
    free = [device(1, product_id="aaaa"), device(2, product_id="bbbb"), device(3, product_id="cccc")]
    assert chosen(choose(free, [either])) == [[1, 2]]


def _families(number: int) -> list[PciDevice]:
    """Functions 16, 32, ... with two virtual ones each."""
    free = []
    for family in range(1, number + 1):
        whole = device(16 * family, kind=PF)
        free += [whole, *(device(16 * family + n, kind=VF, parent=whole.address) for n in (1, 2))]
    return free


def test_virtual_functions_are_taken_where_some_are_in_use() -> None:
    free = [each for each in _families(2) if each.address != device(33).address]
    assert chosen(choose(free, [request(dev_type=VF)])) == [[34]]


def test_whole_functions_and_virtual_ones_at_once() -> None:
    whole, parts = request(1, id="whole", dev_type=PF), request(2, id="parts", dev_type=VF)
    found = chosen(choose(_families(2), [whole, parts]))
    assert found in ([[16], [33, 34]], [[32], [17, 18]])
    assert choose(_families(1), [whole, parts]) is None
    assert choose(_families(2), [request(2, id="w", dev_type=PF), parts]) is None


def test_pools_count_what_is_free() -> None:
    held = [HeldDevice(device=each) for each in (device(1), device(2), device(3, numa_cell=1))]
    held.append(HeldDevice(device=device(4), holder="x"))
    assert [(pool.numa_cell, pool.count) for pool in pools(held)] == [(1, 1), (None, 2)]


def test_cells_with_devices_that_are_wanted() -> None:
    free = [device(1, numa_cell=1), device(2, numa_cell=2, vendor_id="10de"), device(3)]
    assert wanted_cells(free, [request()]) == {1}


_devices = st.lists(
    st.tuples(st.sampled_from(["aaaa", "bbbb"]), st.sampled_from([None, 0, 1]), st.booleans()), max_size=6
)
_requests = st.lists(
    st.tuples(
        st.integers(1, 2),
        st.sampled_from([None, "aaaa", "bbbb"]),
        st.sampled_from([None, "required", "preferred", "socket"]),
        st.sampled_from([None, PCI, PF, VF]),
    ),
    max_size=4,
)


@settings(max_examples=200)
@given(_devices, st.integers(0, 2), _requests, st.sampled_from([None, frozenset({0}), frozenset({0, 1})]))
def test_devices_are_given_once_and_as_asked(
    plain: list[tuple[str, int | None, bool]],
    families: int,
    asked: list[tuple[int, str | None, str | None, str | None]],
    cells: frozenset[int] | None,
) -> None:
    held = [
        HeldDevice(device=device(n + 1, product_id=product, numa_cell=where), holder="x" if taken else None)
        for n, (product, where, taken) in enumerate(plain)
    ]
    held += [HeldDevice(device=each) for each in _families(families)]
    requests = []
    for number, (count, product, policy, kind) in enumerate(asked):
        spec = {
            key: value for key, value in (("product_id", product), ("dev_type", kind)) if value is not None
        }
        requests.append(request(count, policy, id=str(number), **spec))
    free = free_devices(held)
    found = choose(free, requests, Nearness(host(cell(0), cell(1)), cells))
    if found is None:
        return
    by_address = {each.address: each for each in free}
    addresses = [address for holding in found for address in holding.addresses]
    assert len(addresses) == len(set(addresses)) and set(addresses) <= set(by_address)
    assert not {by_address[each].parent for each in addresses} & set(addresses)  # no whole with its parts
    for holding, wanted in zip(found, requests, strict=True):
        assert (holding.request_id, len(holding.addresses)) == (wanted.id, wanted.count)
        for address in holding.addresses:
            assert matches(by_address[address], wanted.specs[0])
            if cells is not None and wanted.numa_policy == "required":
                assert by_address[address].numa_cell in cells
