"""Bodies of requests on a server's network interfaces."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from kilonova.api.schema.kinds import Uuid, read_ip
from kilonova.api.schema.servers import Tag
from kilonova.api.shape import Key, Maybe, Reads, Shape, since

Ip = Annotated[str, Reads(str, read_ip)]


class FixedIp(Shape):
    ip_address: Ip


class Wanted(Shape):
    net_id: Maybe[Uuid] = None
    port_id: Maybe[Uuid] = None
    fixed_ips: Maybe[Annotated[list[FixedIp], Meta(min_length=1, max_length=1)]] = None
    tag: Annotated[Maybe[Tag], since(49)] = None


class Attach(Shape):
    """An empty body asks for the one network that the project can use."""

    wanted: Annotated[Maybe[Wanted], Key("interfaceAttachment")] = None


class NetworkOfIp(Shape):
    network_id: Annotated[Uuid, Key("networkId")]


class AddFixedIp(Shape):
    add: Annotated[NetworkOfIp, Key("addFixedIp")]


class Address(Shape):
    address: Ip


class RemoveFixedIp(Shape):
    remove: Annotated[Address, Key("removeFixedIp")]
