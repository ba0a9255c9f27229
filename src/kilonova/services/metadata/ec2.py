"""EC2's form of the metadata, which older guests and many images read."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.services.metadata.versions import has


class Ec2Facts(msgspec.Struct, frozen=True, kw_only=True):
    """A server in EC2's words.  ``number`` is its serial number; ``key`` the name and the public key."""

    number: int
    image_id: str | None
    hostname: str
    launch_index: int
    local_ipv4: str
    public_ipv4: str
    reservation_id: str
    security_groups: tuple[str, ...]
    key: tuple[str, str] | None
    instance_type: str
    root_device: str
    zone: str


def ec2_meta_data(facts: Ec2Facts, version: str) -> dict[str, Any]:
    """The tree below ``meta-data``: texts, lists of texts, and trees.

    A tree with ``_name`` is listed by that name.
    """
    document: dict[str, Any] = {
        "ami-id": _ami(facts.image_id),
        "ami-launch-index": facts.launch_index,
        "ami-manifest-path": "FIXME",  # Nova's word, which guests have seen for ever
        "instance-id": f"i-{facts.number:08x}",
        "hostname": facts.hostname,
        "local-ipv4": facts.local_ipv4,
        "reservation-id": facts.reservation_id,
        "security-groups": list(facts.security_groups),
    }
    if facts.key is not None:
        name, data = facts.key
        document["public-keys"] = {"0": {"_name": f"0={name}", "openssh-key": data}}
    if has(version, "2007-01-19"):
        document["local-hostname"] = facts.hostname
        document["public-hostname"] = facts.hostname
        document["public-ipv4"] = facts.public_ipv4
    if has(version, "2007-08-29"):
        document["instance-type"] = facts.instance_type
    if has(version, "2007-12-15"):
        short = facts.root_device.removeprefix("/dev/")
        document["block-device-mapping"] = {"ami": short, "root": facts.root_device}
    if has(version, "2008-02-01"):
        document["placement"] = {"availability-zone": facts.zone}
    if has(version, "2008-09-01"):
        document["instance-action"] = "none"
    return document


def find(tree: Any, path: list[str]) -> Any | None:
    """What is at ``path`` in a tree; None if there is nothing."""
    for name in path:
        if not isinstance(tree, dict) or name == "_name" or name not in tree:
            return None
        tree = tree[name]
    return tree


def render(value: Any) -> bytes:
    """A leaf as it is; a tree as the list of its names, those of trees with a slash at the end."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return "\n".join(_listed(name, value[name]) for name in sorted(value) if name != "_name").encode()
    if isinstance(value, list):
        return "\n".join(str(each) for each in value).encode()
    return str(value).encode()


def _listed(name: str, value: Any) -> str:
    if not isinstance(value, dict):
        return name
    return str(value["_name"]) if "_name" in value else name + "/"


def _ami(image_id: str | None) -> str:
    """EC2's short form of an image's id; there is no table that counts images, so it is cut out of it."""
    return f"ami-{image_id[:8] if image_id else '00000000'}"
