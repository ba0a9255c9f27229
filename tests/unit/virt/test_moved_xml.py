"""Definitions of running guests are made fit for where they go."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import HostFault
from kilonova.model.port import Vif
from kilonova.virt.libvirt.xml.interface import interface
from kilonova.virt.libvirt.xml.metadata import OURS
from kilonova.virt.libvirt.xml.moved import moved

ADDRESS = '<address type="pci" domain="0x0000" bus="0x00" slot="{}" function="0x0"/>'


def domain(inside: str = "", devices: str = "", compute_id: str = "source", started_at: int = 5) -> str:
    return (
        "<domain type='kvm'><name>i</name><metadata>"
        f"<k:guest xmlns:k='{OURS}' compute_id='{compute_id}' started_at='{started_at}'/></metadata>"
        f"{inside}<devices>{devices}</devices></domain>"
    )


def there(inside: str = "", devices: str = "") -> str:
    return domain(inside, devices, "destination", 99)


def rewritten(
    source: str = "", target: str = "", *, source_devices: str = "", target_devices: str = ""
) -> ET.Element:
    return ET.fromstring(moved(domain(source, source_devices), there(target, target_devices)))


def written(vif: Vif) -> str:
    return ET.tostring(interface(vif, "virtio", 1, {}), encoding="unicode")


def vif(number: int = 1, **more: Any) -> Vif:
    fields: dict[str, Any] = {
        "port_id": f"{number:08x}-0000-4000-8000-000000000000",
        "mac": f"fa:16:3e:00:00:{number:02x}",
        "network_id": "n",
        "network_name": "net",
        "details": {},
    }
    return Vif(**{**fields, **more})


def attribute(root: ET.Element, path: str, name: str) -> str | None:
    found = root.find(path)
    assert found is not None, path
    return found.get(name)


# ---- whose it is, CPUs and memory ----


def test_the_mark_is_the_destinations_and_the_start_stays() -> None:
    mark = rewritten().find(f"metadata/{{{OURS}}}guest")
    assert mark is not None and dict(mark.attrib) == {"compute_id": "destination", "started_at": "5"}


def test_a_stranger_is_not_sent() -> None:
    with pytest.raises(HostFault, match="not one of Kilonova's"):
        moved("<domain><devices/></domain>", there())


@pytest.mark.capability("MG-LM-9", "MG-LM-16")
def test_cpus_and_cells_are_those_of_the_destinations_claim() -> None:
    root = rewritten(
        "<vcpu placement='static' cpuset='0-1'>2</vcpu><cputune><vcpupin vcpu='0' cpuset='0'/></cputune>"
        "<numatune><memory mode='strict' nodeset='0'/></numatune><cpu><numa><cell id='0'/></numa></cpu>",
        "<vcpu placement='static' cpuset='8-9'>2</vcpu><cputune><vcpupin vcpu='0' cpuset='9'/></cputune>"
        "<numatune><memory mode='strict' nodeset='1'/></numatune>",
    )
    assert attribute(root, "vcpu", "cpuset") == "8-9" and root.findtext("vcpu") == "2"
    assert attribute(root, "cputune/vcpupin", "cpuset") == "9"
    assert attribute(root, "numatune/memory", "nodeset") == "1"
    assert root.find("cpu/numa/cell") is not None, "what the guest sees stays"
    assert len(root.findall("cputune")) == len(root.findall("numatune")) == 1


@pytest.mark.capability("MG-LM-9")
def test_pins_go_where_the_destination_has_none() -> None:
    root = rewritten(
        "<vcpu cpuset='0'>1</vcpu><cputune><shares>5</shares></cputune>"
        "<memoryBacking><locked/></memoryBacking>",
        "<vcpu>1</vcpu>",
    )
    assert attribute(root, "vcpu", "cpuset") is None
    assert root.find("cputune") is None and root.find("memoryBacking") is None


@pytest.mark.capability("MG-LM-9")
def test_pages_of_memory_have_to_stay_as_large() -> None:
    def pages(size: int, unit: str) -> str:
        page = f"<page size='{size}' unit='{unit}' nodeset='0'/>"
        return f"<memoryBacking><hugepages>{page}</hugepages></memoryBacking>"

    same = rewritten(pages(2048, "KiB"), pages(2, "MiB"))
    assert attribute(same, "memoryBacking/hugepages/page", "unit") == "MiB"
    for other in (pages(1, "GiB"), ""):
        with pytest.raises(HostFault, match="pages of another size"):
            rewritten(pages(2048, "KiB"), other)


# ---- consoles and disks ----


@pytest.mark.capability("MG-LM-16")
def test_consoles_listen_and_log_where_the_destination_does() -> None:
    root = rewritten(
        source_devices="<graphics type='vnc' port='5901' listen='10.0.0.1'>"
        "<listen type='address' address='10.0.0.1'/></graphics>"
        "<serial type='pty'><log file='/a/console.log' append='on'/><target port='0'/></serial>"
        "<serial type='pty'><target port='1'/></serial>"
        "<console type='pty'><log file='/a/console.log' append='on'/>"
        "<target type='serial' port='0'/></console>",
        target_devices="<graphics type='vnc' port='-1' listen='10.0.0.2'>"
        "<listen type='address' address='10.0.0.2'/></graphics>"
        "<serial type='pty'><log file='/b/console.log' append='on'/><target port='0'/></serial>"
        "<console type='pty'><target type='serial' port='0'/></console>",
    )
    assert attribute(root, "devices/graphics", "listen") == "10.0.0.2"
    assert [each.get("address") for each in root.iterfind("devices/graphics/listen")] == ["10.0.0.2"]
    logs = [each.get("file") for each in root.iterfind("devices/*/log")]
    assert logs == ["/b/console.log", "/b/console.log"]
    assert len(root.findall("devices/serial")) == 2


@pytest.mark.capability("MG-LM-16")
def test_disks_are_where_the_destination_has_them() -> None:
    disk = (
        "<disk type='file'><driver name='qemu' type='qcow2' cache='{cache}'/><source file='{file}'/>{more}"
        "<target dev='{dev}' bus='virtio'/></disk>"
    )
    chain = "<backingStore type='file'><source file='/a/disk.base'/><backingStore/></backingStore>"
    volume = "<disk type='network'><source protocol='rbd' name='v'/><target dev='vdc'/></disk>"
    root = rewritten(
        source_devices=disk.format(cache="none", file="/a/disk", more=chain, dev="vda") + volume,
        target_devices=disk.format(cache="writeback", file="/b/disk", more="", dev="vda"),
    )
    assert attribute(root, "devices/disk[1]/source", "file") == "/b/disk"
    assert attribute(root, "devices/disk[1]/driver", "cache") == "writeback"
    assert root.find("devices/disk/backingStore") is None
    assert attribute(root, "devices/disk[2]/source", "name") == "v"


# ---- ports ----


@pytest.mark.capability("MG-LM-16", "OVS-17", "OVS-20")
@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("delegated", [True, False])
def test_an_interface_is_the_destinations_in_its_old_place(here: bool, delegated: bool) -> None:
    old = ET.fromstring(written(vif(delegate_create=here)))
    old.append(ET.fromstring(ADDRESS.format("0x05")))
    root = rewritten(
        source_devices=ET.tostring(old, encoding="unicode"),
        target_devices=written(vif(delegate_create=delegated, bridge="br-there")),
    )
    (found,) = root.findall("devices/interface")
    assert found.get("type") == ("ethernet" if delegated else "bridge")
    assert (found.find("virtualport") is None) is delegated
    source = found.find("source")
    assert source is None if delegated else source is not None and source.get("bridge") == "br-there"
    assert attribute(found, "address", "slot") == "0x05"


@pytest.mark.capability("OVS-20")
@pytest.mark.parametrize(
    ("before", "after", "mtu"), [(0, 1450, None), (1450, 0, "1450"), (1450, 1442, "1450")]
)
def test_the_mtu_is_what_the_guest_has_seen(before: int, after: int, mtu: str | None) -> None:
    root = rewritten(source_devices=written(vif(mtu=before)), target_devices=written(vif(mtu=after)))
    found = root.find("devices/interface/mtu")
    assert (found.get("size") if found is not None else None) == mtu


@pytest.mark.capability("OVS-20")
def test_an_interface_without_a_mac_stops_it() -> None:
    with pytest.raises(HostFault, match="no MAC address"):
        rewritten(source_devices="<interface type='bridge'/>", target_devices=written(vif()))


@pytest.mark.capability("OVS-20")
def test_an_interface_without_a_port_there_stops_it() -> None:
    with pytest.raises(HostFault, match="fa:16:3e:00:00:01 has no port"):
        rewritten(source_devices=written(vif(1)), target_devices=written(vif(2)))


@pytest.mark.capability("OVS-20")
@given(
    st.lists(st.tuples(st.integers(1, 200), st.booleans(), st.booleans()), unique_by=lambda each: each[0]),
    st.data(),
)
def test_any_interfaces_keep_their_order_and_places(
    ports: list[tuple[int, bool, bool]], data: st.DataObject
) -> None:
    """Whatever stands between them, and in whatever order the destination names them."""
    devices, wanted = [], []
    for number, here, delegated in ports:
        old = ET.fromstring(
            written(vif(number, delegate_create=here, mtu=data.draw(st.sampled_from([0, 1500]))))
        )
        old.append(ET.fromstring(ADDRESS.format(hex(number))))
        old.find("mac").set("address", vif(number).mac.upper())  # type: ignore[union-attr]
        devices += [ET.tostring(old, encoding="unicode"), "<video/>"]
        wanted.append(written(vif(number, delegate_create=delegated)))
    root = rewritten(
        source_devices="".join(devices), target_devices="".join(data.draw(st.permutations(wanted)))
    )
    found = root.findall("devices/interface")
    assert [attribute(each, "address", "slot") for each in found] == [hex(number) for number, _, _ in ports]
    assert [each.tag for each in root.findall("devices/*")] == ["interface", "video"] * len(ports)
    for each, (number, _, delegated) in zip(found, ports, strict=True):
        assert attribute(each, "target", "dev") == vif(number).devname
        assert each.get("type") == ("ethernet" if delegated else "bridge")
