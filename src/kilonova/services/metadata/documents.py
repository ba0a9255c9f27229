"""What a guest is told of itself: the documents of the config drive and of the metadata service.

Pure functions of a server's record.  Names and versions are Nova's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Any

import msgspec

from kilonova.errors import Failed
from kilonova.model.instance import Instance
from kilonova.model.port import Vif
from kilonova.services.metadata.ec2 import Ec2Facts, ec2_meta_data
from kilonova.services.metadata.network_data import network_data
from kilonova.services.metadata.versions import (
    EC2,
    GRIZZLY,
    HAVANA,
    LATEST,
    LIBERTY,
    NEWTON_ONE,
    NEWTON_TWO,
    OPENSTACK,
    VICTORIA,
    has,
)

__all__ = [
    "Described",
    "config_drive",
    "ec2_facts",
    "meta_data",
    "openstack_documents",
    "openstack_tree",
    "user_data",
]

_encode = msgspec.json.Encoder().encode

Files = tuple[tuple[str, bytes], ...]
"""Injected files: the path in the guest, and the content."""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """A server and all that its documents say of it beyond its record.

    ``random_seed`` is left out when None: on a drive that may be made again it would have to stay the
    same.  ``admin_password`` goes on a config drive only, never through the metadata service.
    """

    instance: Instance
    vifs: tuple[Vif, ...]
    files: Files = ()
    availability_zone: str = "nova"  # of a server whose record has none
    dhcp_domain: str = ""
    admin_password: str | None = None
    random_seed: bytes | None = None
    vendor_data: dict[str, object] = {}
    floating_ips: tuple[str, ...] = ()
    dedicated_cpus: tuple[int, ...] = ()

    @property
    def zone(self) -> str:
        return self.instance.availability_zone or self.availability_zone

    @property
    def hostname(self) -> str:
        """The host's name with the domain, as Nova gives it."""
        name = self.instance.hostname
        return f"{name}.{self.dhcp_domain}" if self.dhcp_domain else name


def config_drive(dhcp_domain: str) -> Callable[[Instance, Files], dict[str, bytes]]:
    """What makes the content of a server's config drive from its record and its injected files."""

    def content(instance: Instance, files: Files) -> dict[str, bytes]:
        return openstack_tree(instance, instance.vifs, files=files, dhcp_domain=dhcp_domain)

    return content


def openstack_tree(
    instance: Instance,
    vifs: tuple[Vif, ...],
    *,
    password: str | None = None,
    files: Files = (),
    availability_zone: str = "nova",
    dhcp_domain: str = "",
    random_seed: bytes | None = None,
    vendor_data: dict[str, object] | None = None,
) -> dict[str, bytes]:
    """Every file of a config drive: its path on the drive -> its content.

    Nova leaves all but the newest of the EC2 versions out, and so does this.
    """
    described = Described(
        instance=instance,
        vifs=vifs,
        files=files,
        availability_zone=availability_zone,
        dhcp_domain=dhcp_domain,
        admin_password=password,
        random_seed=random_seed,
        vendor_data=vendor_data or {},
    )
    tree: dict[str, bytes] = {}
    data = user_data(instance)
    for version in (EC2[-1], LATEST):
        tree[f"ec2/{version}/meta-data.json"] = _encode(_drive_form(ec2_facts(described), version))
        if data is not None:
            tree[f"ec2/{version}/user-data"] = data
    for version in (*OPENSTACK, LATEST):
        for name, document in openstack_documents(described, version).items():
            tree[f"openstack/{version}/{name}"] = document()
    for number, (_, content) in enumerate(files):
        tree["openstack" + _content_path(number)] = content
    return tree


def openstack_documents(described: Described, version: str) -> dict[str, Callable[[], bytes]]:
    """The documents of one version by name, each with what makes it."""
    documents: dict[str, Callable[[], bytes]] = {
        "meta_data.json": lambda: _encode(meta_data(described, version))
    }
    data = user_data(described.instance)
    if data is not None:
        documents["user_data"] = lambda: data
    if has(version, HAVANA):
        documents["vendor_data.json"] = lambda: _encode(described.vendor_data)
    if has(version, LIBERTY):
        documents["network_data.json"] = lambda: _encode(network_data(described.vifs))
    if has(version, NEWTON_TWO):
        documents["vendor_data2.json"] = lambda: _encode({"static": described.vendor_data})
    return documents


def meta_data(described: Described, version: str) -> dict[str, Any]:
    """``meta_data.json`` of one version."""
    instance = described.instance
    document: dict[str, Any] = {
        "uuid": instance.uuid,
        "hostname": described.hostname,
        "name": instance.display_name,
        "launch_index": instance.launch_index,
        "availability_zone": described.zone,
    }
    if instance.metadata:
        document["meta"] = instance.metadata
    if described.files:
        document["files"] = [
            {"content_path": _content_path(number), "path": path}
            for number, (path, _) in enumerate(described.files)
        ]
    if described.admin_password is not None:
        document["admin_pass"] = described.admin_password
    if instance.key_name and instance.key_data:
        document["public_keys"] = {instance.key_name: instance.key_data}
        document["keys"] = [
            {"name": instance.key_name, "type": _key_type(instance.key_data), "data": instance.key_data}
        ]
    if has(version, GRIZZLY) and described.random_seed is not None:
        document["random_seed"] = base64.b64encode(described.random_seed).decode()
    if has(version, LIBERTY):
        document["project_id"] = instance.project_id
    if has(version, NEWTON_ONE):
        document["devices"] = [*_cards(described.vifs), *_disks(instance)]
    if has(version, VICTORIA):
        document["dedicated_cpus"] = sorted(described.dedicated_cpus)
    return document


def user_data(instance: Instance) -> bytes | None:
    """What the user gave for the guest, decoded; None if nothing."""
    if instance.user_data is None:
        return None
    try:
        return base64.b64decode(instance.user_data)
    except (binascii.Error, ValueError) as error:
        raise Failed(f"The stored user data of server {instance.uuid} are not base64.") from error


def ec2_facts(described: Described) -> Ec2Facts:
    """The same server in EC2's words."""
    instance = described.instance
    fixed = [each.address for vif in described.vifs for each in vif.fixed_ips if each.version == 4]
    return Ec2Facts(
        number=instance.id,
        image_id=instance.image.id if instance.image else None,
        hostname=described.hostname,
        launch_index=instance.launch_index,
        local_ipv4=fixed[0] if fixed else "",
        public_ipv4=described.floating_ips[0] if described.floating_ips else "",
        reservation_id=instance.reservation_id,
        security_groups=instance.security_groups,
        key=(instance.key_name, instance.key_data) if instance.key_name and instance.key_data else None,
        instance_type=instance.flavor.name,
        root_device=instance.root_device_name or "/dev/vda",
        zone=described.zone,
    )


def _drive_form(facts: Ec2Facts, version: str) -> dict[str, Any]:
    """EC2 metadata as on a config drive: without the names that only listings show."""
    document = ec2_meta_data(facts, version)
    if "public-keys" in document:
        document["public-keys"] = {
            index: {name: value for name, value in key.items() if name != "_name"}
            for index, key in document["public-keys"].items()
        }
    return document


_BUSES = {"virtio": "pci", "scsi": "scsi", "sata": "scsi", "usb": "usb", "ide": "ide"}
"""Of disks, in the words of this document."""


def _cards(vifs: tuple[Vif, ...]) -> list[dict[str, Any]]:
    """Network cards that the user has tagged.  The place on the bus is the hypervisor's to choose."""
    return [
        {"type": "nic", "bus": "pci", "address": "none", "mac": vif.mac, "tags": [vif.tag]}
        for vif in vifs
        if vif.tag
    ]


def _disks(instance: Instance) -> list[dict[str, Any]]:
    """Volumes that the user has tagged, once the guest has them; it finds them by the serial number."""
    properties = {} if instance.image is None else instance.image.properties
    bus = _BUSES.get(properties.get("hw_disk_bus", "virtio"), "none")
    return [
        {
            "type": "disk",
            "bus": bus,
            "address": "none",
            "serial": volume.volume_id,
            "path": volume.device,
            "tags": [volume.tag],
        }
        for volume in instance.volumes
        if volume.tag and volume.connection is not None
    ]


def _content_path(number: int) -> str:
    return f"/content/{number:04}"


def _key_type(key: str) -> str:
    return "x509" if key.lstrip().startswith("-----BEGIN CERTIFICATE") else "ssh"
