"""A guest's network interfaces."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from kilonova.errors import HostFault
from kilonova.model.port import Vif
from kilonova.virt.libvirt.xml.interface import interface

PORT = "12345678-9abc-4def-8123-456789abcdef"


def vif(**more: Any) -> Vif:
    fields: dict[str, Any] = {
        "port_id": PORT,
        "mac": "fa:16:3e:01:02:03",
        "network_id": "n",
        "network_name": "net",
        "mtu": 1442,
        "bridge": "br-int",
        "details": {"datapath_type": "system"},
    }
    return Vif(**{**fields, **more})


def written(port: Vif, model: str = "virtio", vcpus: int = 1, specs: dict[str, str] | None = None) -> str:
    return ET.tostring(interface(port, model, vcpus, specs or {}), encoding="unicode")


@pytest.mark.capability("OVS-3", "OVS-6")
def test_a_port_that_os_vif_has_made_is_only_opened() -> None:
    assert written(vif()) == (
        '<interface type="ethernet"><mac address="fa:16:3e:01:02:03" />'
        '<target dev="tap12345678-9a" managed="no" /><model type="virtio" /><mtu size="1442" /></interface>'
    )


@pytest.mark.capability("OVS-4")
def test_a_port_that_is_left_to_libvirt() -> None:
    assert written(vif(delegate_create=False)) == (
        '<interface type="bridge"><mac address="fa:16:3e:01:02:03" /><source bridge="br-int" />'
        f'<virtualport type="openvswitch"><parameters interfaceid="{PORT}" /></virtualport>'
        '<target dev="tap12345678-9a" /><model type="virtio" /><mtu size="1442" /></interface>'
    )


@pytest.mark.capability("OVS-6")
def test_hybrid_plug_puts_the_tap_on_the_linux_bridge() -> None:
    root = interface(vif(details={"ovs_hybrid_plug": True}), "virtio", 1, {})
    assert root.get("type") == "bridge"
    source = root.find("source")
    assert source is not None and source.get("bridge") == "qbr12345678-9a"
    assert root.find("virtualport") is None


@pytest.mark.capability("OVS-3", "OVS-4")
@pytest.mark.parametrize("delegate", [True, False])
def test_the_userspace_datapath_gets_no_unfinished_checksums(delegate: bool) -> None:
    netdev = vif(details={"datapath_type": "netdev"}, delegate_create=delegate)
    root = interface(netdev, "virtio", 1, {})
    host, guest = root.find("driver/host"), root.find("driver/guest")
    assert host is not None and guest is not None
    for name in ("csum", "tso4", "tso6", "ecn", "ufo"):
        assert host.get(name) == guest.get(name) == "off"
    assert host.get("gso") == "off"
    assert interface(netdev, "e1000", 1, {}).find("driver") is None  # it computes checksums itself
    assert interface(vif(), "virtio", 1, {}).find("driver") is None


@pytest.mark.capability("OVS-12")
@pytest.mark.parametrize(("vcpus", "queues"), [(1, "2"), (4, "4"), (16, "8")])
@pytest.mark.parametrize("datapath", ["system", "netdev"])
def test_a_tap_with_several_queues_is_opened_as_one(vcpus: int, queues: str, datapath: str) -> None:
    port = vif(details={"datapath_type": datapath, "multiqueue": True})
    driver = interface(port, "virtio", vcpus, {}).find("driver")
    assert driver is not None and driver.get("queues") == queues


@pytest.mark.capability("OVS-3")
def test_model_and_bandwidth() -> None:
    specs = {
        "quota:vif_inbound_average": "1000",
        "quota:vif_inbound_peak": "2000",
        "quota:vif_outbound_average": "500",
        "quota:vif_outbound_burst": "64",
        "quota:disk_read_bytes_sec": "1",
    }
    root = interface(vif(), "e1000", 1, specs)
    model, inbound, outbound = (
        root.find("model"),
        root.find("bandwidth/inbound"),
        root.find("bandwidth/outbound"),
    )
    assert model is not None and model.get("type") == "e1000"
    assert inbound is not None and dict(inbound.attrib) == {"average": "1000", "peak": "2000"}
    assert outbound is not None and dict(outbound.attrib) == {"average": "500", "burst": "64"}
    assert interface(vif(), "virtio", 1, {"quota:vif_inbound_peak": "5"}).find("bandwidth") is None


@pytest.mark.parametrize("port", [vif(vif_type="unbound"), vif(vnic_type="direct")])
def test_other_kinds_of_port_are_refused(port: Vif) -> None:
    with pytest.raises(HostFault, match=f"Port {PORT} is bound as"):
        interface(port, "virtio", 1, {})
