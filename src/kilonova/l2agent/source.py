"""What the layer-2 agent of a host asks of the network service, and is told by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kilonova.model.wiring import NetworkDetails, PortDetails


class WiringSource(Protocol):
    """The network service, as the agent of one host sees it."""

    async def port(self, port_id: str, host: str) -> PortDetails | None:
        """None for a port that does not exist or is not bound to ``host``."""

    async def network(self, network_id: str) -> NetworkDetails | None: ...

    async def tell_peers(self, network_id: str, host: str) -> None:
        """``host`` has got its first port of the network: the other hosts are to look at it anew."""

    async def port_up(self, port_id: str, host: str) -> None:
        """The port is wired: its status becomes ACTIVE and the server's host is told."""

    async def port_down(self, port_id: str, host: str) -> None:
        """The port has left the switch."""

    def subscribe(self, changed: Callable[[str, str], None]) -> Callable[[], None]:
        """Have ``changed(kind, id)`` called in the event loop whenever a port or network changes.

        ``kind`` is "port" or "network", or "everything" when changes may have been missed.  A change of a
        security group is a change of each of its ports.  Calls may be lost over a bus: the agent also
        compares everything now and then.  Returns what ends the subscription.
        """
