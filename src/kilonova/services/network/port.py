"""What the rest of the house asks of a network service."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kilonova.model.context import RequestContext
from kilonova.model.port import Profiles, RequestedNetwork, Vif


class PortRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The ports that one server wants.

    ``networks`` None means that the user said nothing: the one network that the project can use; an empty
    tuple means none.  ``auto`` makes the project's own network if it has none.
    """

    instance_uuid: str
    project_id: str
    hostname: str
    networks: tuple[RequestedNetwork, ...] | None
    auto: bool = False
    security_groups: tuple[str, ...] = ("default",)
    availability_zone: str = "nova"


class OnePort(msgspec.Struct, frozen=True, kw_only=True):
    """One port more for a server.

    ``port_id`` is the one that the user has made (``taken``), or that the one which is made for it shall
    have: by that it is known again.  ``network_id`` None: the one network that the project can use.
    ``privileged``: the caller may use what is of other projects, ``external``: external networks.
    """

    instance_uuid: str
    project_id: str
    hostname: str
    port_id: str
    taken: bool = False
    network_id: str | None = None
    fixed_ip: str | None = None
    tag: str | None = None
    privileged: bool = False
    external: bool = False
    availability_zone: str = "nova"


class NetworkService(Protocol):
    async def check(
        self,
        context: RequestContext,
        networks: tuple[RequestedNetwork, ...] | None,
        security_groups: tuple[str, ...],
        count: int,
        auto: bool,
    ) -> int:
        """Whether these ports can be had, before anything is made.

        Returns how many servers the project's port quota allows, at most ``count``.  Raises Invalid (a
        network that does not exist or that the caller may not use; a port in use; an address that is not
        in its network), Conflict (several networks and none named), OverQuota.
        """

    def physical_networks(self, networks: tuple[RequestedNetwork, ...] | None) -> tuple[str, ...]:
        """The physical networks that ports on these networks are on, as far as they are on any."""

    async def allocate(
        self, request: PortRequest, host: str, host_details: dict[str, str]
    ) -> tuple[Vif, ...]:
        """Make the missing ports and bind all of them to ``host``, in the order of the request.

        Converges: ports that a former try made are found by their owner and index.  Raises Failed when
        there is no address left, a port is gone or taken; TryAgain when the service does not answer.
        """

    async def attach(self, request: OnePort, host: str, host_details: dict[str, str]) -> Vif:
        """Make one port or take one of the user's, and bind it to ``host`` as the last of the server's.

        Converges.  Raises Invalid (no network to choose, or several; no address is left), Forbidden,
        NotFound, Conflict (the port or the address is in use), OverQuota.
        """

    async def release(self, instance_uuid: str, port_id: str) -> None:
        """Take one port from a server: delete it if it was made for it, else unbind it.  Converges."""

    async def add_fixed_ip(self, instance_uuid: str, network_id: str) -> None:
        """Give one address more to the server's port on a network.

        Raises NotFound if it has none there, Invalid if no address is left.
        """

    async def remove_fixed_ip(self, instance_uuid: str, address: str) -> None:
        """Take an address from the server's port that has it.  Raises NotFound if none has."""

    async def deallocate(self, instance_uuid: str) -> None:
        """Delete the ports that were made for this server and unbind those that the user made."""

    async def bind(self, instance_uuid: str, host: str, host_details: dict[str, str]) -> tuple[Vif, ...]:
        """Have all ports of the server at a host, and only there; the ports as they are then.

        Converges.  Raises Failed when a port cannot be bound there."""

    async def unbind(self, instance_uuid: str) -> tuple[Vif, ...]:
        """Take all ports of the server from whatever host they are at; they stay its own.  Converges."""

    async def add_bindings(
        self,
        instance_uuid: str,
        host: str,
        host_details: dict[str, str],
        profiles: Profiles | None = None,
    ) -> tuple[Vif, ...]:
        """Bind every port of the server to another host, too, without taking it from where it is (MG-LM-5).

        The server's ports as they are there, not active.  ``profiles`` by port are kept with these bindings,
        beside what the port's own profile says; when they are given, `DELEGATION` holds for no port of which
        they do not say it (OVS-18).  Converges.  Raises Failed when a port cannot be bound there, and leaves
        none of them then.
        """

    async def activate_bindings(self, instance_uuid: str, host: str) -> tuple[Vif, ...]:
        """Have the ports at ``host``, where they have bindings; those that were active are so no more.

        Converges.  Raises Failed for a port without a binding there.
        """

    async def remove_bindings(self, instance_uuid: str, host: str) -> None:
        """Remove the bindings to a host that are not active; none is no error."""

    async def vifs(self, instance_uuid: str) -> tuple[Vif, ...]:
        """The server's ports as they are now."""

    async def security_groups(self, instance_uuid: str) -> tuple[str, ...]:
        """The names of the server's security groups."""
