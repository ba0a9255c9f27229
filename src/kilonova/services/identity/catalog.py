"""The service catalog, made from the addresses of the services."""

from __future__ import annotations

import uuid
from typing import Any

REGION = "RegionOne"
INTERFACES = ("public", "internal", "admin")

# Type -> the name that clients look for (libcloud goes by type and name; pkgcloud keeps one service a
# name), and what its address ends in (clients add /v2.0 to the network's and /v2 to the image service's).
_SERVICES = {
    "compute": ("nova", "/v2.1"),
    "identity": ("keystone", "/v3"),
    "image": ("glance", ""),
    "network": ("neutron", ""),
    "placement": ("placement", ""),
}
_IDS = uuid.UUID("6f6d2a8e-3b0c-5e0b-9a55-7f3a1c2d4e5f")

Catalog = list[dict[str, Any]]


def catalog_for(urls: dict[str, str]) -> Catalog:
    """The catalog of services at these addresses, by type; ids are the same every time.

    Raises ValueError for a type that is not known here.
    """
    unknown = sorted(urls.keys() - _SERVICES.keys())
    if unknown:
        raise ValueError(f"no such service type: {', '.join(unknown)}")
    return [_service(kind, *_SERVICES[kind], urls[kind]) for kind in sorted(urls)]


def _service(kind: str, name: str, ending: str, root: str) -> dict[str, Any]:
    url = root.rstrip("/")
    if not url.endswith(ending):
        url += ending
    endpoints = [
        {
            "id": uuid.uuid5(_IDS, f"{kind}/{interface}").hex,
            "interface": interface,
            "region": REGION,
            "region_id": REGION,
            "url": url,
        }
        for interface in INTERFACES
    ]
    return {"id": uuid.uuid5(_IDS, kind).hex, "type": kind, "name": name, "endpoints": endpoints}
