"""The documents by which clients find out what is served.  They need no token."""

from __future__ import annotations

from typing import Any

from kilonova.api.microversion import MAX, MIN, text

_V20 = {
    "id": "v2.0",
    "status": "SUPPORTED",
    "version": "",
    "min_version": "",
    "updated": "2011-01-21T11:33:21Z",
}
_V21 = {
    "id": "v2.1",
    "status": "CURRENT",
    "version": text(MAX),
    "min_version": text(MIN),
    "updated": "2013-07-23T11:33:21Z",
}
_PATHS = {"v2.0": "v2", "v2.1": "v2.1"}
VERSIONS = {"v2.0": _V20, "v2.1": _V21}


def _media_types(identity: str) -> list[dict[str, str]]:
    number = {"v2.0": "2", "v2.1": "2.1"}[identity]
    return [{"base": "application/json", "type": f"application/vnd.openstack.compute+json;version={number}"}]


def _self_link(root: str, identity: str) -> dict[str, str]:
    return {"rel": "self", "href": f"{root}/{_PATHS[identity]}/"}


def listing(root: str) -> dict[str, Any]:
    """``GET /``"""
    return {
        "versions": [
            {**version, "links": [_self_link(root, identity)]} for identity, version in VERSIONS.items()
        ]
    }


def document(root: str, identity: str) -> dict[str, Any]:
    """``GET /v2.1`` and ``GET /v2``.  Raises KeyError for an unknown version."""
    version = VERSIONS[identity]
    described_by = {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"}
    return {
        "version": {
            **version,
            "links": [_self_link(root, identity), described_by],
            "media-types": _media_types(identity),
        }
    }


def choices(root: str, path: str) -> dict[str, Any]:
    """``GET /{anything}``: the same path below each version."""
    return {
        "choices": [
            {
                "id": identity,
                "status": version["status"],
                "links": [{"rel": "self", "href": f"{root}/{_PATHS[identity]}{path}"}],
                "media-types": _media_types(identity),
            }
            for identity, version in VERSIONS.items()
        ]
    }
