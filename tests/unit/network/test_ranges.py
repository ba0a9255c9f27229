"""Arithmetic of subnets: pools, positions, free addresses."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.services.network import ranges
from kilonova.services.network.faults import (
    GatewayConflictWithAllocationPools,
    InvalidInput,
    OutOfBoundsAllocationPool,
    OverlappingAllocationPools,
)

cidrs = st.builds(
    lambda number, prefix: ipaddress.ip_network((number, prefix), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 32),
)
cidrs6 = st.builds(
    lambda number, prefix: ipaddress.ip_network((ipaddress.IPv6Address(number), prefix), strict=False),
    st.integers(0, 2**128 - 1),
    st.integers(1, 128),
)


@given(st.one_of(cidrs, cidrs6), st.booleans())
def test_default_pools_hold_usable_addresses_and_not_the_gateway(
    cidr: ranges.Cidr, with_gateway: bool
) -> None:
    gateway = ranges.default_gateway(cidr) if with_gateway else None
    pools = ranges.default_pools(cidr, gateway)
    ranges.check_pools(cidr, pools, gateway)
    spare = 0 if cidr.max_prefixlen - cidr.prefixlen < 2 else (2 if cidr.version == 4 else 1)
    assert ranges.size_of(pools) == cidr.num_addresses - spare - (1 if with_gateway else 0)


@given(st.one_of(cidrs, cidrs6), st.data())
def test_positions_sort_as_addresses_and_come_back(cidr: ranges.Cidr, data: st.DataObject) -> None:
    low, high = int(cidr.network_address), int(cidr.broadcast_address)
    kind = type(cidr.network_address)
    one, other = (kind(data.draw(st.integers(low, high))) for _ in range(2))
    assert (ranges.position(one) < ranges.position(other)) == (one < other)
    assert ranges.address_at(ranges.position(one)) == str(one)


@given(
    st.sets(st.integers(1, 60)),
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 10)), min_size=1, max_size=4),
    st.integers(0, 64),
)
def test_looking_from_any_cursor_finds_a_free_address_if_and_only_if_there_is_one(
    used: set[int], spans: list[tuple[int, int]], cursor: int
) -> None:
    pools, end = [], 0
    for start, length in sorted(spans):
        if start > end:
            end = min(start + length, 62)
            pools.append((f"10.0.0.{start}", f"10.0.0.{end}"))
    place = "{:08x}".format(int(ipaddress.ip_address("10.0.0.0")) + cursor)
    taken = sorted(f"{int(ipaddress.ip_address('10.0.0.0')) + each:08x}" for each in used)
    found = None
    for first, last in ranges.spans_from(pools, place):
        mine = [each for each in taken if first <= each <= last]
        found, _ = ranges.first_free(mine, first, last, full=False)
        if found is not None:
            break
    inside = {n for a, b in pools for n in range(int(a.split(".")[3]), int(b.split(".")[3]) + 1)}
    if inside - used:
        assert found is not None
        number = int(ranges.address_at(found).split(".")[3])
        assert number in inside - used
        ahead = {n for n in inside - used if n >= cursor}
        assert number == min(ahead or inside - used)
    else:
        assert found is None


def test_the_last_address_of_the_space_is_followed_by_nothing() -> None:
    last = ranges.position(ipaddress.ip_address("255.255.255.255"))
    beyond = ranges.after(last)
    spans = list(ranges.spans_from([("255.255.255.1", "255.255.255.255")], beyond))
    assert spans == [("ffffff01", "ffffffff")]
    assert ranges.first_free(["ffffffff"], "ffffffff", "ffffffff", False) == (None, None)


@pytest.mark.parametrize(
    ("pools", "gateway", "fault"),
    [
        ([("10.0.0.9", "10.0.0.5")], None, InvalidInput),
        ([("10.0.0.5", "fd00::1")], None, InvalidInput),
        ([("10.0.0.5", "10.0.1.5")], None, OutOfBoundsAllocationPool),
        ([("10.0.0.0", "10.0.0.5")], None, OutOfBoundsAllocationPool),
        ([("10.0.0.5", "10.0.0.255")], None, OutOfBoundsAllocationPool),
        ([("10.0.0.5", "10.0.0.9"), ("10.0.0.9", "10.0.0.12")], None, OverlappingAllocationPools),
        ([("10.0.0.5", "10.0.0.9")], "10.0.0.7", GatewayConflictWithAllocationPools),
    ],
)
def test_bad_pools_are_refused(
    pools: list[tuple[str, str]], gateway: str | None, fault: type[Exception]
) -> None:
    with pytest.raises(fault):
        ranges.check_pools(ranges.parse_cidr("10.0.0.0/24"), pools, gateway)
