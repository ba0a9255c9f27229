"""What can be wrong with a request to the network service, under the type names that Neutron's API uses.

The class's name is the ``type`` of the answer.  ``status`` is there where Neutron's HTTP status is another
than the one of the error's kind.
"""

from __future__ import annotations

from kilonova.errors import Conflict, Forbidden, Invalid, NotFound, TryAgain
from kilonova.errors import OverQuota as QuotaError


class HTTPBadRequest(Invalid):
    """An attribute that is unknown, missing, misplaced or of the wrong form."""


class InvalidInput(Invalid):
    """Every attribute is well formed, but they make no sense."""


class PolicyNotAuthorized(Forbidden):
    """Something that only administrators may do."""


class OverQuota(QuotaError):
    status = 409


class _Missing(NotFound):
    kind = "Resource"

    def __init__(self, name: str) -> None:
        super().__init__(f"{self.kind} {name} could not be found.")


class NetworkNotFound(_Missing):
    kind = "Network"


class SubnetNotFound(_Missing):
    kind = "Subnet"


class PortNotFound(_Missing):
    kind = "Port"


class SecurityGroupNotFound(_Missing):
    kind = "Security group"


class SecurityGroupRuleNotFound(_Missing):
    kind = "Security group rule"


class ExtensionNotFound(_Missing):
    kind = "Extension with alias"


class TagNotFound(_Missing):
    kind = "Tag"


class HTTPNotFound(NotFound):
    """No such route."""


class PortBindingNotFound(NotFound):
    def __init__(self, port_id: str, host: str) -> None:
        super().__init__(f"Binding for port {port_id} for host {host} could not be found.")


class PortBindingAlreadyExists(Conflict):
    def __init__(self, port_id: str, host: str) -> None:
        super().__init__(f"Binding for port {port_id} on host {host} already exists.")


class PortBindingAlreadyActive(Conflict):
    def __init__(self, port_id: str, host: str) -> None:
        super().__init__(f"Binding for port {port_id} on host {host} is already active.")


class NetworkInUse(Conflict):
    def __init__(self, network_id: str) -> None:
        super().__init__(
            f"Unable to complete operation on network {network_id}: there are one or more ports still in "
            "use on the network. Delete those ports first."
        )


class SubnetInUse(Conflict):
    def __init__(self, subnet_id: str) -> None:
        super().__init__(
            f"Unable to complete operation on subnet {subnet_id}: one or more ports have an IP allocation "
            "from this subnet. Delete those ports first."
        )


class ServicePortInUse(Conflict):
    """A port that the network service itself works with."""


class PortInUse(Conflict):
    """A port that some device has."""


class MacAddressInUse(Conflict):
    def __init__(self, network_id: str, mac: str) -> None:
        super().__init__(f"The MAC address {mac} is already in use on network {network_id}.")


class VlanIdInUse(Conflict):
    def __init__(self, vlan: int, physical_network: str) -> None:
        super().__init__(f"The VLAN {vlan} on physical network {physical_network} is already in use.")


class NoNetworkAvailable(TryAgain):
    """All VLANs are taken."""

    status = 503


class InvalidSharedSetting(Conflict):
    """Tenants other than the owner use the network."""


class IpAddressInUse(Conflict):
    def __init__(self, network_id: str, address: str) -> None:
        super().__init__(f"The IP address {address} is already in use on network {network_id}.")


class IpAddressGenerationFailure(Conflict):
    def __init__(self, network_id: str) -> None:
        super().__init__(f"No more IP addresses available on network {network_id}.")


class InvalidIpForNetwork(Invalid):
    def __init__(self, address: str) -> None:
        super().__init__(f"IP address {address} is not a valid IP for any of the subnets on this network.")


class InvalidIpForSubnet(Invalid):
    def __init__(self, address: str) -> None:
        super().__init__(f"IP address {address} is not a valid IP for the given subnet.")


class OutOfBoundsAllocationPool(Conflict):
    def __init__(self, pool: str, cidr: str) -> None:
        super().__init__(f"The allocation pool {pool} spans beyond the subnet cidr {cidr}.")


class OverlappingAllocationPools(Conflict):
    def __init__(self, one: str, other: str, cidr: str) -> None:
        super().__init__(f"Found overlapping allocation pools: {one} and {other} for subnet {cidr}.")


class GatewayConflictWithAllocationPools(Conflict):
    def __init__(self, address: str, pool: str) -> None:
        super().__init__(f"Gateway ip {address} conflicts with allocation pool {pool}.")


class GatewayIpInUse(Conflict):
    """A port has the address that is to be the gateway."""


class SecurityGroupInUse(Conflict):
    def __init__(self, group_id: str) -> None:
        super().__init__(f"Security Group {group_id} in use.")


class SecurityGroupCannotRemoveDefault(Forbidden):
    """The default group stays, but for administrators."""

    status = 409


class SecurityGroupCannotUpdateDefault(Forbidden):
    status = 409


class SecurityGroupDefaultAlreadyExists(Conflict):
    def __init__(self) -> None:
        super().__init__("Default security group already exists.")


class SecurityGroupRuleExists(Conflict):
    def __init__(self, rule_id: str) -> None:
        super().__init__(f"Security group rule already exists. Rule id is {rule_id}.")


class SecurityGroupRuleInvalidProtocol(Invalid):
    def __init__(self, protocol: str) -> None:
        super().__init__(
            f"The protocol {protocol} is not supported. Give a protocol's name or a number from 0 to 255."
        )


class SecurityGroupRuleInvalidEtherType(Invalid):
    def __init__(self, ethertype: object) -> None:
        super().__init__(f"The ethertype {ethertype} is not supported. Give IPv4 or IPv6.")


class SecurityGroupInvalidPortRange(Invalid):
    def __init__(self) -> None:
        super().__init__("For TCP/UDP protocols, port_range_min must be <= port_range_max.")


class SecurityGroupInvalidPortValue(Invalid):
    def __init__(self, value: object) -> None:
        super().__init__(f"Invalid value for port {value}.")


class SecurityGroupInvalidIcmpValue(Invalid):
    def __init__(self, field: str, attribute: str, value: object) -> None:
        super().__init__(f"Invalid value for ICMP {field} ({attribute}) {value}. It must be 0 to 255.")


class SecurityGroupMissingIcmpType(Invalid):
    def __init__(self, code: object) -> None:
        super().__init__(f"The ICMP code (port_range_max) {code} is given without a type (port_range_min).")


class SecurityGroupProtocolRequiredWithPorts(Invalid):
    def __init__(self) -> None:
        super().__init__("A port range needs a protocol: give that too.")


class SecurityGroupRemoteGroupAndRemoteIpPrefix(Invalid):
    def __init__(self) -> None:
        super().__init__("Only one of remote_ip_prefix and remote_group_id may be given.")


class SecurityGroupRuleParameterConflict(Invalid):
    def __init__(self, ethertype: str, cidr: str) -> None:
        super().__init__(f"Conflicting value ethertype {ethertype} for CIDR {cidr}.")


class SecurityGroupEthertypeConflictWithProtocol(Invalid):
    def __init__(self, ethertype: str, protocol: str) -> None:
        super().__init__(f"Invalid ethertype {ethertype} for protocol {protocol}.")


class PortSecurityAndIPRequiredForSecurityGroups(Conflict):
    status = 400

    def __init__(self) -> None:
        super().__init__(
            "Port security must be enabled and the port must have an IP address in order to use "
            "security groups."
        )


class PortSecurityPortHasSecurityGroup(Conflict):
    def __init__(self) -> None:
        super().__init__(
            "Port has security groups. Remove them, and its allowed address pairs, before disabling "
            "port security."
        )


class AddressPairAndPortSecurityRequired(Conflict):
    def __init__(self) -> None:
        super().__init__("Port security must be enabled in order to have allowed address pairs on a port.")
