"""The service catalog: the addresses of our own services, and what administrators have added to them."""

from __future__ import annotations

import re
import uuid
from typing import Any

import msgspec

from kilonova.db import identity_catalog as entries
from kilonova.db.engine import Tx
from kilonova.db.identity_catalog import E, Endpoint, Region, Service

REGION = "RegionOne"
INTERFACES = ("public", "internal", "admin")

# Type -> the name that clients look for (libcloud goes by type and name; pkgcloud keeps one service a
# name), and what its address ends in (clients add /v2.0 to the network's and /v2 to the image service's).
_SERVICES = {
    "block-storage": ("cinder", "/v3"),
    "compute": ("nova", "/v2.1"),
    "identity": ("keystone", "/v3"),
    "image": ("glance", ""),
    "network": ("neutron", ""),
    "placement": ("placement", ""),
    "volume": ("volume", "/v3"),
    "volumev3": ("cinderv3", "/v3"),
}
# Each client looks for volumes by another type.
_ALSO = {"volume": ("block-storage", "volumev3")}
_IDS = uuid.UUID("6f6d2a8e-3b0c-5e0b-9a55-7f3a1c2d4e5f")

# What may stand in an endpoint's URL, in either of Keystone's two ways of writing it.
_PLACE = re.compile(r"[$%]\((\w+)\)s")
PLACES = ("project_id", "tenant_id", "user_id")

Catalog = list[dict[str, Any]]


class Entries(msgspec.Struct, frozen=True):
    """Regions, services and endpoints, by id."""

    regions: dict[str, Region]
    services: dict[str, Service]
    endpoints: dict[str, Endpoint]

    def of(self, kind: type[E]) -> dict[str, Any]:
        by_kind: dict[type, dict[str, Any]] = {
            Region: self.regions,
            Service: self.services,
            Endpoint: self.endpoints,
        }
        return by_kind[kind]


def configured(urls: dict[str, str]) -> Entries:
    """What there is without anybody's doing: services at these addresses, by type; ids are always the same.

    Raises ValueError for a type that is not known here.
    """
    unknown = sorted(urls.keys() - _SERVICES.keys())
    if unknown:
        raise ValueError(f"no such service type: {', '.join(unknown)}")
    services, endpoints = {}, {}
    urls = {kind: url for first, url in urls.items() for kind in (first, *_ALSO.get(first, ()))}
    for kind in sorted(urls):
        name, ending = _SERVICES[kind]
        service = Service(id=uuid.uuid5(_IDS, kind).hex, type=kind, name=name)
        services[service.id] = service
        url = urls[kind].rstrip("/")
        for interface in INTERFACES:
            id = uuid.uuid5(_IDS, f"{kind}/{interface}").hex
            endpoints[id] = Endpoint(
                id=id,
                service_id=service.id,
                interface=interface,
                region_id=REGION,
                url=url if url.endswith(ending) else url + ending,
            )
    return Entries({REGION: Region(id=REGION)}, services, endpoints)


def all_entries(tx: Tx, first: Entries) -> Entries:
    """The configured ones and those in the database."""
    return Entries(
        {**first.regions, **{each.id: each for each in entries.every(tx, Region)}},
        {**first.services, **{each.id: each for each in entries.every(tx, Service)}},
        {**first.endpoints, **{each.id: each for each in entries.every(tx, Endpoint)}},
    )


def catalog(found: Entries, project_id: str | None, user_id: str) -> Catalog:
    """What a token shows.  Endpoints that need a project are left out of a token without one."""
    values = {"user_id": user_id}
    if project_id is not None:
        values |= {"project_id": project_id, "tenant_id": project_id}
    shown: dict[str, dict[str, Any]] = {
        each.id: {"id": each.id, "type": each.type, "name": each.name, "endpoints": []}
        for each in found.services.values()
        if each.enabled
    }
    for endpoint in found.endpoints.values():
        url = filled(endpoint.url, values)
        if endpoint.enabled and url is not None and endpoint.service_id in shown:
            shown[endpoint.service_id]["endpoints"].append(
                {
                    "id": endpoint.id,
                    "interface": endpoint.interface,
                    "region": endpoint.region_id,
                    "region_id": endpoint.region_id,
                    "url": url,
                }
            )
    return list(shown.values())


def places(url: str) -> list[str]:
    """The names that a URL wants filled in."""
    return _PLACE.findall(url)


def filled(url: str, values: dict[str, str]) -> str | None:
    """None if there is no value for one of the places."""
    if any(name not in values for name in places(url)):
        return None
    return _PLACE.sub(lambda found: values[found[1]], url)
