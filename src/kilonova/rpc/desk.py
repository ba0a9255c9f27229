"""What controllers do for the agents of hosts: the other direction of `rpc.host`.

A desk is one host's: it gives what that host needs to know, and nothing of others.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from kilonova.model.host import HostReport
from kilonova.model.instance import Instance
from kilonova.model.wiring import NetworkDetails, PortDetails
from kilonova.rpc.messages import Observed

IMAGE_PIECE = 512 * 1024  # bytes; NATS carries a mebibyte in a message unless it is told otherwise


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    """``version`` is that of the controller's messages, ``now`` its time (microseconds)."""

    version: str
    now: int


class Alive(msgspec.Struct, frozen=True, kw_only=True):
    """A sign of life.  ``sequence`` comes back in its echo; ``now`` is the host's own time."""

    session: str
    sequence: int
    now: int


class Echo(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a sign of life, by the way that commands come.

    ``known`` is False when no such host has reported, ``superseded`` is True when another session has since.
    """

    sequence: int
    known: bool
    superseded: bool = False
    now: int


class Desk(Protocol):
    """All verbs raise Unreachable when no controller answers."""

    async def hello(self, report: HostReport, session: str, *, again: bool = False) -> Welcome:
        """Serve as this host from now on.  Raises Conflict or Invalid, with the reason, for one that may not:
        a name that is another's, a changed identity, a version that is too old.

        ``again``: these are news of one that serves already.  Raises Conflict if it does not any more.
        """

    async def observed(self, seen: tuple[Observed, ...], *, all_at: int = 0) -> None:
        """What guests of the host do.

        ``all_at`` (a generation): these are all, so that a server without a guest is told, too.
        """

    async def port(self, port_id: str) -> PortDetails | None:
        """How to wire a port; None for one that is not bound to this host."""

    async def network(self, network_id: str) -> NetworkDetails | None:
        """A network that has a port on this host; else None."""

    async def tell_peers(self, network_id: str) -> None:
        """This host has got its first port of a network: the other hosts are to look at it anew."""

    async def port_up(self, port_id: str) -> None:
        """The port is wired."""

    async def port_down(self, port_id: str) -> None:
        """The port has left the switch."""

    async def image(self, image_id: str, offset: int) -> bytes:
        """IMAGE_PIECE bytes of an image that a server of this host is made of, fewer or none at its end.

        Raises NotFound.
        """

    async def put_image(self, image_id: str, offset: int, data: bytes) -> int:
        """Hand in a piece, at most IMAGE_PIECE bytes, of an image that an operation wants from this host.

        How many bytes have come: as many as before, when something in front of the piece is missing.
        Raises NotFound for an image that nobody wants (any more), TooLarge, Invalid, TryAgain.
        """

    async def finish_image(self, image_id: str, size: int, sha512: str, disk_format: str) -> None:
        """All of the image was handed in; this is what it must be.  Converges.

        Raises TryAgain when it is not, and is to be handed in anew from its beginning; NotFound, Invalid.
        """

    async def guest_at(self, network_id: str, address: str) -> Instance | None:
        """The server of this host that asks for its metadata from there."""

    async def keep_password(self, uuid: str, password: str) -> None:
        """What a guest has told as its administrator's password, encrypted with its key."""


class DeskDirectory(Protocol):
    def desk(self, host: str) -> Desk: ...
