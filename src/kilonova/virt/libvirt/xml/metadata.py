"""The metadata of a domain: Nova's, which operators' tools read, and the mark by which we know our own."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import kilonova
from kilonova.clock import SECOND, iso_z
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.libvirt.xml.element import element

NOVA = "http://openstack.org/xmlns/libvirt/nova/1.1"
OURS = "urn:kilonova:guest:1"
ET.register_namespace("nova", NOVA)
ET.register_namespace("kilonova", OURS)


def metadata(guest: GuestSpec, compute_id: str, started_at: int) -> ET.Element:
    """``started_at`` in microseconds, since libvirt does not say when a guest was started."""
    mark = element(f"{{{OURS}}}guest", {"compute_id": compute_id, "started_at": started_at})
    return element("metadata", None, _nova(guest), mark)


def _nova(guest: GuestSpec) -> ET.Element:
    flavor = guest.flavor
    sizes = (
        ("memory", flavor.memory_mb),
        ("disk", flavor.root_gb),
        ("swap", flavor.swap_mb),
        ("ephemeral", flavor.ephemeral_gb),
        ("vcpus", flavor.vcpus),
    )
    created = iso_z(guest.created_at // SECOND * SECOND).replace("T", " ").rstrip("Z")
    return _n(
        "instance",
        None,
        _n("package", {"version": kilonova.__version__}),
        _n("name", text=guest.name),
        _n("creationTime", text=created),
        _n("flavor", {"name": flavor.name}, *(_n(name, text=size) for name, size in sizes)),
        _n(
            "owner",
            None,
            _n("user", {"uuid": guest.user_id}, text=guest.user_name or guest.user_id),
            _n("project", {"uuid": guest.project_id}, text=guest.project_name or guest.project_id),
        ),
        _n("root", {"type": "image", "uuid": guest.image.id}) if guest.image else None,
        _n("ports", None, *(_port(guest, number) for number in range(len(guest.vifs)))),
    )


def _port(guest: GuestSpec, number: int) -> ET.Element:
    vif = guest.vifs[number]
    addresses = (
        _n("ip", {"type": "fixed", "address": ip.address, "ipVersion": ip.version}) for ip in vif.fixed_ips
    )
    return _n("port", {"uuid": vif.port_id}, *addresses)


def _n(
    tag: str,
    attributes: dict[str, str | int | None] | None = None,
    *children: ET.Element | None,
    text: str | int | None = None,
) -> ET.Element:
    return element(f"{{{NOVA}}}{tag}", attributes, *children, text=text)


def read_mark(text: str) -> tuple[str, int]:
    """The compute_id and the time of the last start in our element, as libvirt gives it back."""
    mark = ET.fromstring(text)  # libvirt's own words
    return mark.get("compute_id", ""), int(mark.get("started_at") or 0)
