"""What a user asks for, checked in its form and not yet in its meaning."""

from __future__ import annotations

import msgspec

from kilonova.model.port import RequestedNetwork


class CreateServer(msgspec.Struct, frozen=True, kw_only=True):
    """One ``POST /servers``.  ``networks`` None: the user named none; (): ``none``."""

    name: str
    flavor_id: str
    image_id: str | None
    networks: tuple[RequestedNetwork, ...] | None = None
    auto_network: bool = False
    key_name: str | None = None
    user_data: str | None = None  # base64, as sent
    config_drive: bool | None = None
    metadata: dict[str, str] = {}
    security_groups: tuple[str, ...] = ("default",)
    min_count: int = 1
    max_count: int = 1
    availability_zone: str | None = None  # zone, zone:host, zone:host:node, zone::node
    host: str | None = None  # 2.74
    hypervisor_hostname: str | None = None
    description: str | None = None
    hostname: str | None = None
    tags: tuple[str, ...] = ()
    hints: dict[str, object] = {}
    access_ip_v4: str | None = None
    access_ip_v6: str | None = None
    disk_config: str | None = None  # AUTO or MANUAL
    personality: tuple[tuple[str, bytes], ...] = ()  # path, content; up to 2.56
    return_reservation_id: bool = False
    zero_disk: bool = True  # whether the caller may boot an image with a flavor that has no disk
