"""Network interfaces: taps that os-vif has plugged, or bridges where libvirt makes the tap."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping

from kilonova.errors import HostFault
from kilonova.model.port import Vif
from kilonova.virt.libvirt.xml.element import element

MOST_QUEUES = 8
_CHECKSUMS = ("csum", "tso4", "tso6", "ecn", "ufo")


def interface(vif: Vif, model: str, vcpus: int, specs: Mapping[str, str]) -> ET.Element:
    """``specs`` are the flavor's extra specs, for bandwidth.  Raises HostFault for other kinds of port."""
    if vif.vif_type != "ovs" or vif.vnic_type != "normal":
        raise HostFault(
            f"Port {vif.port_id} is bound as '{vif.vif_type}' with vnic_type '{vif.vnic_type}', and this "
            "host has only ovs and normal ones."
        )
    kind, source = _source(vif)
    return element(
        "interface",
        {"type": kind},
        element("mac", {"address": vif.mac}),
        *source,
        element("model", {"type": model}),
        _driver(vif, model, vcpus),
        element("mtu", {"size": vif.mtu}) if vif.mtu else None,
        _bandwidth(specs),
    )


def _source(vif: Vif) -> tuple[str, list[ET.Element]]:
    target = {"dev": vif.devname}
    if vif.details.get("ovs_hybrid_plug"):
        bridge = ("qbr" + vif.port_id)[:14]
        return "bridge", [element("source", {"bridge": bridge}), element("target", target)]
    if vif.delegate_create:  # os-vif has made the port and its tap: libvirt only opens it
        return "ethernet", [element("target", {**target, "managed": "no"})]
    parameters = element("parameters", {"interfaceid": vif.port_id})
    return "bridge", [
        element("source", {"bridge": vif.bridge}),
        element("virtualport", {"type": "openvswitch"}, parameters),
        element("target", target),
    ]


def _driver(vif: Vif, model: str, vcpus: int) -> ET.Element | None:
    """Queues of a tap that has several; and no offloading of checksums on the userspace datapath.

    That reads taps as raw packets and does not finish checksums, so TCP from the guest would be dropped by
    every receiver.
    """
    if model != "virtio":
        return None
    queues = min(max(vcpus, 2), MOST_QUEUES) if vif.details.get("multiqueue") else None
    if vif.details.get("datapath_type") != "netdev":
        return element("driver", {"queues": queues}) if queues else None
    off: dict[str, str | int | None] = {name: "off" for name in _CHECKSUMS}
    return element(
        "driver",
        {"name": "qemu", "queues": queues},
        element("host", {**off, "gso": "off"}),
        element("guest", off),
    )


def _bandwidth(specs: Mapping[str, str]) -> ET.Element | None:
    """The flavor's ``quota:vif_inbound_average`` and so on: kilobytes a second, bursts in kilobytes."""
    directions = []
    for direction in ("inbound", "outbound"):
        limits: dict[str, str | int | None] = {}
        for part in ("average", "peak", "burst"):
            value = specs.get(f"quota:vif_{direction}_{part}")
            if value and value.isdigit():
                limits[part] = int(value)
        if "average" in limits:
            directions.append(element(direction, limits))
    return element("bandwidth", None, *directions) if directions else None
