"""Bodies of requests on servers."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from kilonova.api.microversion import MAX
from kilonova.api.schema.kinds import (
    Flag,
    FullText,
    Metadata,
    Name,
    Uuid,
    read_ip,
    read_ipv4,
    read_ipv6,
    read_number,
    read_uuid,
)
from kilonova.api.shape import Key, Maybe, Reads, Shape, between, read, since, until
from kilonova.errors import Invalid

MAX_TAGS = 50

_TAG = re.compile(r"[^,/\x00-\x1f\x7f]{1,60}\Z")
_HOSTNAME = re.compile(r"[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+\Z")
_FQDN = re.compile(r"[a-zA-Z0-9]+[a-zA-Z0-9.-]*[a-zA-Z0-9]+\Z")
_HOST = re.compile(r"[a-zA-Z0-9\-._]{1,255}\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def read_tag(value: str) -> str:
    """1 to 60 characters, neither comma nor slash nor control characters."""
    if not _TAG.match(value):
        raise ValueError(f"'{value}' is no tag: 1 to 60 characters without comma and slash")
    return value


def _read_hostname(value: str) -> str:
    if not (2 <= len(value) <= 63 and _HOSTNAME.match(value)):
        raise ValueError(f"'{value}' is not a host name of 2 to 63 letters, digits and hyphens")
    return value


def _read_fqdn(value: str) -> str:
    if not (2 <= len(value) <= 255 and _FQDN.match(value)):
        raise ValueError(f"'{value}' is not a host name or domain name of 2 to 255 characters")
    return value


def _read_host(value: str) -> str:
    if not _HOST.match(value):
        raise ValueError(f"'{value}' is not the name of a host")
    return value


def _read_description(value: str) -> str:
    if len(value) > 255:
        raise ValueError("a description has at most 255 characters")
    if _CONTROL.search(value):
        raise ValueError("a description has no control characters")
    return value


def _read_image(value: str) -> str:
    return read_uuid(value) if value else value


def _read_flavor(value: str | int) -> str:
    text = str(value)
    if not 1 <= len(text) <= 255:
        raise ValueError("a flavor's id has 1 to 255 characters")
    return text


def _read_base64(value: str) -> bytes:
    try:
        return base64.b64decode(value.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("it is not base64") from None


def _read_disk_config(value: str) -> str:
    if value not in ("AUTO", "MANUAL"):
        raise ValueError(f"'{value}' is neither AUTO nor MANUAL")
    return value


def _read_hints(value: dict[str, Any]) -> dict[str, Any]:
    """Checked where Nova knows the word, and otherwise as given."""
    try:
        read(Hints, MAX, value)
    except Invalid as error:
        raise ValueError(str(error)) from None
    return value


Tag = Annotated[str, Reads(str, read_tag)]
Tags = Annotated[list[Tag], Meta(max_length=MAX_TAGS)]
Description = Annotated[str, Reads(str, _read_description)]
DiskConfig = Annotated[str, Reads(str, _read_disk_config)]
FlavorRef = Annotated[str, Reads(str | int, _read_flavor)]
IpV4 = Annotated[str, Reads(str, read_ipv4)]
IpV6 = Annotated[str, Reads(str, read_ipv6)]
Address = Annotated[str, Reads(str, read_ip)]
HostName = Annotated[str, Reads(str, _read_host)]
HintWords = Annotated[dict[str, Any], Reads(dict[str, Any], _read_hints)]


class Group(Shape):
    name: FullText


class NetworkRequest(Shape):
    """One entry of ``networks``."""

    fixed_ip: Maybe[Address] = None
    port: Uuid | None = None
    uuid: Maybe[str] = None
    tag: Annotated[Maybe[Tag], between(32, 36), since(42)] = None


class File(Shape):
    path: Annotated[str, Meta(max_length=255)]
    contents: Annotated[bytes, Reads(str, _read_base64)]


class OldBlockDevice(Shape):
    virtual_name: Maybe[Annotated[str, Meta(max_length=255)]] = None
    volume_id: Maybe[Uuid] = None
    snapshot_id: Maybe[Uuid] = None
    volume_size: Maybe[Annotated[int, Reads(int | str, read_number(0))]] = None
    device_name: Maybe[FullText] = None
    delete_on_termination: Maybe[Flag] = None
    no_device: Any = None
    connection_info: Maybe[str] = None


class BlockDevice(OldBlockDevice):
    source_type: Maybe[Literal["volume", "image", "snapshot", "blank"]] = None
    uuid: Maybe[FullText] = None
    image_id: Maybe[Uuid] = None
    destination_type: Maybe[Literal["volume", "local"]] = None
    guest_format: Maybe[Annotated[str, Meta(max_length=255)]] = None
    device_type: Maybe[Annotated[str, Meta(max_length=255)]] = None
    disk_bus: Maybe[Annotated[str, Meta(max_length=255)]] = None
    boot_index: Annotated[int, Reads(int | str, read_number(-(2**31)))] | None = None
    tag: Annotated[Maybe[Tag], between(32, 32), since(42)] = None
    volume_type: Annotated[str | None, since(67)] = None


class Hints(Shape, open=True):
    """Words to the scheduler; others than these are let pass, as in Nova."""

    group: Maybe[Uuid] = None
    different_host: Maybe[str | list[str]] = None
    same_host: Maybe[str | list[str]] = None
    query: Maybe[str | dict[str, Any]] = None
    target_cell: Maybe[Name] = None
    different_cell: Maybe[str | list[str]] = None
    build_near_host_ip: Maybe[Address] = None
    cidr: Maybe[Annotated[str, Meta(pattern=r"^/[0-9a-f.:]+$")]] = None


class ServerToCreate(Shape):
    name: Name
    flavor: Annotated[FlavorRef, Key("flavorRef")]
    image: Annotated[str | None, Reads(str, _read_image), Key("imageRef")] = None
    admin_pass: Annotated[Maybe[str], Key("adminPass")] = None
    metadata: Maybe[Metadata] = None
    networks_before: Annotated[Maybe[list[NetworkRequest]], until(36), Key("networks")] = None
    networks: Annotated[list[NetworkRequest] | Literal["auto", "none"], since(37)]
    disk_config: Annotated[Maybe[DiskConfig], Key("OS-DCF:diskConfig")] = None
    access_ipv4: Annotated[Maybe[IpV4], Key("accessIPv4")] = None
    access_ipv6: Annotated[Maybe[IpV6], Key("accessIPv6")] = None
    personality: Annotated[Maybe[list[File]], until(56)] = None
    availability_zone: Maybe[Name] = None
    old_block_devices: Annotated[Maybe[list[OldBlockDevice]], Key("block_device_mapping")] = None
    block_devices: Annotated[Maybe[list[BlockDevice]], Key("block_device_mapping_v2")] = None
    config_drive: Maybe[Flag] = None
    key_name: Maybe[Name] = None
    min_count: Maybe[Annotated[int, Reads(int | str, read_number(1))]] = None
    max_count: Maybe[Annotated[int, Reads(int | str, read_number(1))]] = None
    return_reservation_id: Maybe[Flag] = None
    security_groups: Maybe[list[Group]] = None
    user_data: Maybe[Annotated[str, Meta(max_length=65535)]] = None
    description: Annotated[Description | None, since(19)] = None
    tags: Annotated[Maybe[Tags], since(52)] = None
    trusted_image_certificates: Annotated[
        Annotated[list[FullText], Meta(min_length=1, max_length=50)] | None, since(63)
    ] = None
    host: Annotated[Maybe[HostName], since(74)] = None
    hypervisor_hostname: Annotated[Maybe[HostName], since(74)] = None
    hostname: Annotated[Maybe[str], Reads(str, _read_hostname), between(90, 93)] = None
    domain_name: Annotated[Maybe[str], Reads(str, _read_fqdn), since(94), Key("hostname")] = None


class CreateBody(Shape):
    server: ServerToCreate
    hints: Annotated[Maybe[HintWords], Key("os:scheduler_hints")] = None
    older_hints: Annotated[Maybe[HintWords], Key("OS-SCH-HNT:scheduler_hints")] = None


class ServerToUpdate(Shape):
    """Fields that are left out stay as they are."""

    name: Maybe[Name] = None
    disk_config: Annotated[Maybe[DiskConfig], Key("OS-DCF:diskConfig")] = None
    access_ipv4: Annotated[Maybe[IpV4], Key("accessIPv4")] = None
    access_ipv6: Annotated[Maybe[IpV6], Key("accessIPv6")] = None
    description: Annotated[Description | UnsetType | None, since(19)] = UNSET
    hostname: Annotated[Maybe[str], Reads(str, _read_hostname), between(90, 93)] = None
    domain_name: Annotated[Maybe[str], Reads(str, _read_fqdn), since(94), Key("hostname")] = None
    pinned_availability_zone: Annotated[str | UnsetType | None, since(104)] = UNSET


class UpdateBody(Shape):
    server: ServerToUpdate
