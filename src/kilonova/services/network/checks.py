"""Whether the ports that a user asks for can be had, before anything is made."""

from __future__ import annotations

import ipaddress

from kilonova.db import network_addresses as addresses
from kilonova.db import network_ledger as ledger
from kilonova.db import network_ports as ports
from kilonova.errors import Conflict, Invalid, OverQuota
from kilonova.model.context import RequestContext
from kilonova.model.port import RequestedNetwork
from kilonova.services.network.addressing import containing
from kilonova.services.network.groups import DEFAULT
from kilonova.services.network.ranges import position
from kilonova.services.network.servers import check_address, group_ids, named_network, the_network
from kilonova.services.network.work import Work, owner_of, privileged


def check(
    work: Work,
    context: RequestContext,
    requested: tuple[RequestedNetwork, ...] | None,
    security_groups: tuple[str, ...],
    count: int,
    auto: bool,
) -> int:
    """How many such servers the port quota allows, at most ``count``.

    Raises Invalid, Conflict, OverQuota with Nova's words.
    """
    project_id = owner_of(context, {})
    named = tuple(name for name in security_groups if name != DEFAULT)  # that one is made when needed
    if named:
        group_ids(work, project_id, named)
    if requested is None:
        needed = _needed_unnamed(work, project_id, auto)
    else:
        needed = 0
        seen: set[str] = set()
        for each in requested:
            if each.port_id is not None:
                _check_port(work, context, each.port_id, seen, count)
            else:
                _check_network(work, context, each, count)
                needed += 1
    return _allowed(work, project_id, needed, count)


def _needed_unnamed(work: Work, project_id: str, auto: bool) -> int:
    """One port, unless there is no network at all.  A network is not made yet."""
    return 1 if the_network(work, project_id, auto=False) is not None or auto else 0


def _check_port(work: Work, context: RequestContext, port_id: str, seen: set[str], count: int) -> None:
    port = ports.port(work.tx, port_id)
    if port is None or not (privileged(context) or port.project_id == context.project_id):
        raise Invalid(f"Port id {port_id} could not be found.")
    if port_id in seen:
        raise Invalid(f"Port {port_id} is asked for twice: one server can have it once.")
    seen.add(port_id)
    if count > 1:
        raise Invalid(
            "Unable to launch multiple instances with a single configured port ID. "
            "Please launch your instance one by one with different ports."
        )
    if port.device_id:
        raise Conflict(f"Port {port_id} is still in use.")
    if not addresses.of_port(work.tx, port_id):
        raise Invalid(f"Port {port_id} requires a FixedIP in order to be used.")


def _check_network(work: Work, context: RequestContext, wanted: RequestedNetwork, count: int) -> None:
    if wanted.network_id is None:
        raise Invalid("A requested network names neither a network nor a port.")
    joined = named_network(work, owner_of(context, {}), wanted.network_id, everything=privileged(context))
    if not joined.subnets:
        raise Invalid(f"Network {wanted.network_id} requires a subnet in order to boot instances on.")
    if wanted.fixed_ip is None:
        return
    if count > 1:
        raise Invalid("Invalid fixed IP and max count request: one address is not for several servers.")
    check_address(joined, wanted.fixed_ip)
    subnet = containing(joined, wanted.fixed_ip)
    if addresses.holder(work.tx, subnet.id, position(ipaddress.ip_address(wanted.fixed_ip))) is not None:
        raise Conflict(
            f"Fixed IP address {wanted.fixed_ip} is already in use on network {joined.network.id}."
        )


def _allowed(work: Work, project_id: str, needed: int, count: int) -> int:
    if needed == 0:
        return count
    limit = ledger.limits(work.tx, project_id).get("port", work.options.quotas["port"])
    if limit < 0:
        return count
    free = limit - ledger.usages(work.tx, project_id).get("port", 0)
    if free < needed:
        raise OverQuota("Maximum number of ports exceeded")
    return min(count, free // needed)
