"""One port more for a server that is there already, and one address more or less for a port of it."""

from __future__ import annotations

from kilonova.db import network_addresses as addresses
from kilonova.db import network_networks as networks
from kilonova.db import network_ports as ports
from kilonova.db.network_networks import Joined
from kilonova.db.network_records import Port
from kilonova.errors import Conflict, Forbidden, Invalid, NotFound
from kilonova.model.context import RequestContext
from kilonova.model.port import RequestedNetwork
from kilonova.services.network.addressing import Wanted
from kilonova.services.network.faults import IpAddressGenerationFailure
from kilonova.services.network.port import OnePort, PortRequest
from kilonova.services.network.ports import update_port
from kilonova.services.network.servers import Target, bind, check_address, make, the_network
from kilonova.services.network.work import Work


def attach(work: Work, request: OnePort, host: str, details: dict[str, str]) -> None:
    """Make or take the port and bind it to the host, after those that the server has.

    See NetworkService for what it raises.
    """
    owner = f"compute:{request.availability_zone}"
    target = Target(request.instance_uuid, owner, request.hostname, host, details)
    mine = ports.of_device(work.tx, request.instance_uuid)
    had = next((port for port in mine if port.id == request.port_id), None)
    if had is not None:  # by a former try
        bind(work, had, target, had.nic_index, request.tag)
        return
    index = max((port.nic_index for port in mine if port.nic_index is not None), default=-1) + 1
    if request.taken:
        bind(work, _free_port(work, request), target, index, request.tag)
        return
    joined = _network(work, request)
    wanted = RequestedNetwork(network_id=joined.network.id, fixed_ip=request.fixed_ip, tag=request.tag)
    for_server = PortRequest(
        instance_uuid=request.instance_uuid,
        project_id=request.project_id,
        hostname=request.hostname,
        networks=(wanted,),
    )
    try:
        make(work, for_server, wanted, index, target, {joined.network.id: joined}, request.port_id)
    except IpAddressGenerationFailure as error:
        raise Invalid(f"Zero fixed ips available: {error}") from error


def _free_port(work: Work, request: OnePort) -> Port:
    """The port that the user has made."""
    port = ports.locked_port(work.tx, request.port_id)
    if port is None or not (request.privileged or port.project_id == request.project_id):
        raise NotFound(f"Port {request.port_id} could not be found.")
    if port.project_id != request.project_id:
        raise Invalid(f"Port {port.id} not usable for instance {request.instance_uuid}.")
    if port.device_id not in ("", request.instance_uuid):
        raise Conflict(f"Port {port.id} is still in use.")
    if not addresses.of_port(work.tx, port.id):
        raise Invalid(f"Port {port.id} requires a FixedIP in order to be used.")
    return port


def _network(work: Work, request: OnePort) -> Joined:
    """The network that the port shall be on."""
    if request.network_id is None:
        return _only_network(work, request.project_id)
    joined = networks.with_subnets(work.tx, request.network_id)
    if joined is None:
        raise NotFound(f"Network {request.network_id} could not be found.")
    network = joined.network
    theirs = network.shared or network.project_id == request.project_id
    if network.external and not (theirs or request.external):
        raise Forbidden(f"It is not allowed to create an interface on external network {network.id}")
    if not (theirs or network.external or request.privileged):
        raise NotFound(f"Network {network.id} could not be found.")
    if not joined.subnets:
        raise Invalid(f"Network {network.id} requires a subnet in order to attach an interface to it.")
    if request.fixed_ip is not None:
        check_address(joined, request.fixed_ip)
    return joined


def _only_network(work: Work, project_id: str) -> Joined:
    try:
        found = the_network(work, project_id, auto=False)
    except Conflict as error:
        raise Invalid(str(error)) from error
    if found is None:
        raise Invalid(
            "No specific network was requested and none are available for project "
            f"'{project_id}': name a network or a port."
        )
    return found


def add_fixed_ip(work: Work, instance_uuid: str, network_id: str) -> None:
    """Give one address more to the first of the server's ports on the network that can have one."""
    joined = networks.with_subnets(work.tx, network_id)
    there = [port for port in ports.of_device(work.tx, instance_uuid) if port.network_id == network_id]
    if joined is None or not there:
        raise NotFound(f"Instance {instance_uuid} has no port on network {network_id}.")
    kept = _exactly(work, there[0])
    for subnet in joined.subnets:
        try:
            _readdress(work, there[0], (*kept, Wanted(subnet_id=subnet.id)))
        except IpAddressGenerationFailure:
            continue
        return
    raise Invalid(f"Zero fixed ips available on network {network_id}.")


def remove_fixed_ip(work: Work, instance_uuid: str, address: str) -> None:
    """Take the address from the port that has it."""
    for port in ports.of_device(work.tx, instance_uuid):
        kept = _exactly(work, port)
        left = tuple(each for each in kept if each.address != address)
        if left != kept:
            _readdress(work, port, left)
            return
    raise NotFound(f"Fixed ip {address} is not one of instance {instance_uuid}.")


def _exactly(work: Work, port: Port) -> tuple[Wanted, ...]:
    return tuple(Wanted(each.subnet_id, each.address) for each in addresses.of_port(work.tx, port.id))


def _readdress(work: Work, port: Port, wanted: tuple[Wanted, ...]) -> None:
    """As compute, which may say which addresses a server has on a network of others."""
    compute = RequestContext(
        request_id="", user_id="", project_id=port.project_id, roles=frozenset({"service"})
    )
    update_port(work, compute, port.id, {"fixed_ips": wanted})
