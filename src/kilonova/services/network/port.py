"""What the rest of the house asks of a network service."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kilonova.model.context import RequestContext
from kilonova.model.port import RequestedNetwork, Vif


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

    async def deallocate(self, instance_uuid: str) -> None:
        """Delete the ports that were made for this server and unbind those that the user made."""

    async def vifs(self, instance_uuid: str) -> tuple[Vif, ...]:
        """The server's ports as they are now."""

    async def security_groups(self, instance_uuid: str) -> tuple[str, ...]:
        """The names of the server's security groups."""
