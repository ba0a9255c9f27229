"""Arithmetic of subnets: CIDRs, allocation pools, gateways, positions of addresses.  Pure."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator, Sequence

from kilonova.services.network.faults import (
    GatewayConflictWithAllocationPools,
    InvalidInput,
    OutOfBoundsAllocationPool,
    OverlappingAllocationPools,
)

Cidr = ipaddress.IPv4Network | ipaddress.IPv6Network
Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Pool = tuple[str, str]


def parse_cidr(text: str) -> Cidr:
    """The subnet that a text names, with its host bits cleared.  Raises ValueError."""
    return ipaddress.ip_network(text, strict=False)


def position(address: Ip) -> str:
    """Hexadecimal digits that sort as the addresses of one subnet do."""
    return f"{int(address):0{8 if address.version == 4 else 32}x}"


def address_at(where: str) -> str:
    """The address at a position."""
    number = int(where, 16)
    return str(ipaddress.IPv4Address(number) if len(where) == 8 else ipaddress.IPv6Address(number))


def after(where: str) -> str:
    """The position after this one; past the last address it is longer, and so beyond every pool."""
    return f"{int(where, 16) + 1:0{len(where)}x}"


def usable(cidr: Cidr, address: Ip) -> bool:
    """Whether a port may have the address: in the subnet, and neither its first nor its broadcast one."""
    if address.version != cidr.version or address not in cidr:
        return False
    if cidr.max_prefixlen - cidr.prefixlen < 2:
        return True  # /31, /32, /127 and /128 have no addresses to lose
    if address == cidr.network_address:
        return False
    return not (cidr.version == 4 and address == cidr.broadcast_address)


def default_gateway(cidr: Cidr) -> str:
    """The first usable address of a subnet."""
    small = cidr.max_prefixlen - cidr.prefixlen < 2
    return str(cidr.network_address if small and cidr.version == 4 else cidr.network_address + _one(cidr))


def _one(cidr: Cidr) -> int:
    return 0 if cidr.num_addresses == 1 else 1


def default_pools(cidr: Cidr, gateway: str | None) -> tuple[Pool, ...]:
    """All usable addresses but the gateway."""
    first, last = int(cidr.network_address), int(cidr.broadcast_address)
    if cidr.max_prefixlen - cidr.prefixlen >= 2:
        first += 1
        last -= 1 if cidr.version == 4 else 0
    kind = type(cidr.network_address)
    spans = [(first, last)]
    if gateway is not None:
        hole = int(ipaddress.ip_address(gateway))
        if first <= hole <= last:
            spans = [(first, hole - 1), (hole + 1, last)]
    return tuple((str(kind(a)), str(kind(b))) for a, b in spans if a <= b)


def check_pools(cidr: Cidr, pools: Sequence[Pool], gateway: str | None) -> None:
    """Whether these pools are all right in this subnet.

    Raises InvalidInput, OutOfBoundsAllocationPool, OverlappingAllocationPools,
    GatewayConflictWithAllocationPools.
    """
    spans: list[tuple[int, int, str]] = []
    for first_text, last_text in pools:
        first, last = ipaddress.ip_address(first_text), ipaddress.ip_address(last_text)
        name = f"{first}-{last}"
        if first.version != cidr.version or last.version != cidr.version or int(first) > int(last):
            raise InvalidInput(f"The allocation pool {name} is not valid.")
        if not (usable(cidr, first) and usable(cidr, last)):
            raise OutOfBoundsAllocationPool(name, str(cidr))
        spans.append((int(first), int(last), name))
    spans.sort()
    for (_, end, one), (start, _, other) in itertools.pairwise(spans):
        if start <= end:
            raise OverlappingAllocationPools(one, other, str(cidr))
    if gateway is not None:
        number = int(ipaddress.ip_address(gateway))
        for start, end, name in spans:
            if start <= number <= end:
                raise GatewayConflictWithAllocationPools(gateway, name)


def spans_from(pools: Sequence[Pool], cursor: str) -> Iterator[tuple[str, str]]:
    """Spans of positions that together are the pools once, beginning at the cursor and coming round."""
    spans = sorted(
        (position(ipaddress.ip_address(first)), position(ipaddress.ip_address(last))) for first, last in pools
    )
    for first, last in spans:
        if cursor <= last and len(cursor) == len(last):
            yield max(first, cursor), last
    for first, last in spans:
        if first < cursor or len(cursor) != len(first):
            yield first, min(last, _before(cursor)) if len(cursor) == len(last) else last


def _before(where: str) -> str:
    return f"{int(where, 16) - 1:0{len(where)}x}"


def size_of(pools: Sequence[Pool]) -> int:
    """How many addresses the pools hold."""
    return sum(
        int(ipaddress.ip_address(last)) - int(ipaddress.ip_address(first)) + 1 for first, last in pools
    )


def first_free(used: Sequence[str], first: str, last: str, full: bool) -> tuple[str | None, str | None]:
    """The first position of a span that is not in ``used``, which is sorted and begins there.

    ``full`` says that ``used`` may go on: then, if all of it is taken, the second value is where to look on.
    """
    where = first
    for each in used:
        if where < each:
            return where, None
        where = after(each)
    if full:
        return None, where
    return (where, None) if where <= last and len(where) == len(last) else (None, None)
