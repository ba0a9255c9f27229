"""PCI devices: as libvirt tells of them, as an operator chooses them, and as resource providers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Failed
from kilonova.model.host import Inventory, ProviderReport
from kilonova.model.pci import PCI, PF, VF, PciDevice
from kilonova.resources.provider_tree import nested_uuid
from kilonova.virt.libvirt.pci import read_devices
from kilonova.virt.pci_providers import check_specs_without_names, pci_providers
from kilonova.virt.pci_spec import Found, choose, read_specs

# libvirt's node devices (formatnode)
PHYSICAL = """
<device>
  <name>pci_0000_81_00_0</name>
  <parent>pci_0000_80_02_0</parent>
  <driver><name>ixgbe</name></driver>
  <capability type='pci'>
    <class>0x020000</class>
    <domain>0</domain><bus>129</bus><slot>0</slot><function>0</function>
    <product id='0x1528'>Ethernet Controller 10-Gigabit X540-AT2</product>
    <vendor id='0x8086'>Intel Corporation</vendor>
    <capability type='virt_functions' maxCount='63'>
      <address domain='0x0000' bus='0x81' slot='0x10' function='0x0'/>
    </capability>
    <iommuGroup number='41'><address domain='0x0000' bus='0x81' slot='0x00' function='0x0'/></iommuGroup>
    <numa node='1'/>
  </capability>
</device>
"""
VIRTUAL = """
<device>
  <name>pci_0000_81_10_0</name>
  <parent>pci_0000_80_02_0</parent>
  <capability type='pci'>
    <domain>0</domain><bus>129</bus><slot>16</slot><function>0</function>
    <product id='0x1515'>X540 Ethernet Controller Virtual Function</product>
    <vendor id='0x8086'>Intel Corporation</vendor>
    <capability type='phys_function'>
      <address domain='0x0000' bus='0x81' slot='0x00' function='0x0'/>
    </capability>
    <numa node='1'/>
  </capability>
</device>
"""
CARD = """
<device>
  <name>pci_10000_0a_1f_7</name>
  <capability type='pci'>
    <domain>65536</domain><bus>10</bus><slot>31</slot><function>7</function>
    <product id='0x1db4'/><vendor id='0x10de'>NVIDIA Corporation</vendor>
    <numa node='-1'/>
  </capability>
</device>
"""
VIRTIO = """
<device>
  <name>pci_0000_00_03_0</name>
  <capability type='pci'>
    <domain>0</domain><bus>0</bus><slot>3</slot><function>0</function>
    <product id='0x1000'/><vendor id='0x1af4'/>
  </capability>
</device>
"""
VIRTIO_BETWEEN = """
<device><name>virtio0</name><parent>pci_0000_00_03_0</parent><driver><name>virtio_net</name></driver></device>
"""


def net(parent: str, interface: str, mac: str) -> str:
    return (
        f"<device><name>net_{interface}</name><parent>{parent}</parent><capability type='net'>"
        f"<interface>{interface}</interface><address>{mac}</address></capability></device>"
    )


NETS = (
    net("pci_0000_81_00_0", "ens1", "a0:36:9f:00:00:01"),
    net("pci_0000_81_10_0", "ens1v0", "a0:36:9f:00:00:02"),
    net("virtio0", "eth0", "52:54:00:00:00:01"),
    net("computer", "lo", "00:00:00:00:00:00"),
)


def test_node_devices_are_read() -> None:
    found = read_devices([*NETS, VIRTUAL, VIRTIO_BETWEEN, CARD, PHYSICAL, VIRTIO])
    virtual, card, physical, virtio = found
    assert physical == Found(
        device=PciDevice(
            address="0000:81:00.0",
            vendor_id="8086",
            product_id="1528",
            kind=PF,
            numa_cell=1,
            mac="a0:36:9f:00:00:01",
        ),
        interfaces=("ens1",),
    )
    assert virtual.device == PciDevice(
        address="0000:81:10.0",
        vendor_id="8086",
        product_id="1515",
        kind=VF,
        parent="0000:81:00.0",
        numa_cell=1,
        mac="a0:36:9f:00:00:02",
    )
    assert (virtual.interfaces, virtual.parent_interfaces) == (("ens1v0",), ("ens1",))
    assert card.device == PciDevice(address="10000:0a:1f.7", vendor_id="10de", product_id="1db4", kind=PCI)
    assert (virtio.interfaces, virtio.device.mac, virtio.device.numa_cell) == (
        ("eth0",),
        "52:54:00:00:00:01",
        None,
    )
    assert read_devices([]) == []


# ---- choosing ----


def device(address: str, product: str = "1515", kind: str = PCI, **more: Any) -> Found:
    fields = {key: more.pop(key) for key in ("interfaces", "parent_interfaces") if key in more}
    return Found(
        device=PciDevice(address=address, vendor_id="8086", product_id=product, kind=kind, **more), **fields
    )


P0 = device("0000:81:00.0", "1528", PF, interfaces=("ens1",))
V0 = device(
    "0000:81:10.0", kind=VF, parent="0000:81:00.0", parent_interfaces=("ens1",), interfaces=("ens1v0",)
)
V1 = device("0000:81:10.1", kind=VF, parent="0000:81:00.0", parent_interfaces=("ens1",))
P1 = device("0000:82:00.0", "1528", PF, interfaces=("ens2",))
W0 = device("0000:82:10.0", kind=VF, parent="0000:82:00.0", parent_interfaces=("ens2",))
GPU = Found(device=PciDevice(address="0001:0a:00.0", vendor_id="10de", product_id="1db4"))
ALL = (P0, V0, V1, P1, W0, GPU)


def chosen(*specs: object, devices: Sequence[Found] = ALL) -> list[str]:
    return [each.address for each in choose(read_specs([json.dumps(spec) for spec in specs]), devices)]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"vendor_id": "8086"}, (P0, V0, V1, P1, W0)),
        ({"vendor_id": "10DE", "product_id": "1DB4"}, (GPU,)),
        ({"vendor_id": "0x8086", "product_id": "0x1515"}, (V0, V1, W0)),
        ({"vendor_id": "8086", "product_id": "*"}, (P0, V0, V1, P1, W0)),
        ({"product_id": "1515"}, (V0, V1, W0)),
        # addresses as text: one that is whole means a physical function with its virtual ones
        ({"address": "0000:81:00.0"}, (P0, V0, V1)),
        ({"address": "0000:81:00.0", "product_id": "1515"}, (V0, V1)),
        ({"address": "0:81:0.0"}, (P0, V0, V1)),
        ({"address": "0000:81:10.1"}, (V1,)),
        ({"address": "0000:81:00.*"}, (P0,)),
        ({"address": "*:81:*.*"}, (P0, V0, V1)),
        ({"address": ":82:"}, (P1, W0)),
        ({"address": "81:"}, (P0, V0, V1)),
        ({"address": ":0a:00."}, (GPU,)),
        ({"address": "10.0"}, (V0, W0)),
        ({"address": "0001:*:*.*"}, (GPU,)),
        ({"address": "*"}, ALL),
        ({"address": "0003:00:00.0"}, ()),
        # and as regular expressions
        ({"address": {"domain": "0000", "bus": "8[12]", "slot": "10", "function": "[0-1]"}}, (V0, V1, W0)),
        ({"address": {"bus": "81"}}, (P0, V0, V1)),
        ({"address": {"bus": "0A"}}, (GPU,)),
        ({"address": {"bus": "8"}}, ()),  # all of it has to match
        # names of interfaces
        ({"devname": "ens1"}, (P0, V0, V1)),
        ({"devname": "ens1v0"}, (V0,)),
        ({"devname": "ens9"}, ()),
        ({"devname": "ens2", "product_id": "1528"}, (P1,)),
    ],
)
def test_which_devices_a_spec_means(spec: dict[str, object], expected: tuple[Found, ...]) -> None:
    assert chosen(spec) == [each.device.address for each in expected]


def test_the_first_spec_that_matches_tags_a_device() -> None:
    specs = read_specs(
        [
            '[{"devname": "ens1v0", "physical_network": "one"},'
            ' {"devname": "ens1", "physical_network": "two"}]',
            '{"vendor_id": "8086", "physical_network": null, "trusted": "true", "ours": "x"}',
        ]
    )
    tags = {each.address: each.tags for each in choose(specs, ALL)}
    assert tags == {
        "0000:81:00.0": {"physical_network": "two"},
        "0000:81:10.0": {"physical_network": "one"},
        "0000:81:10.1": {"physical_network": "two"},
        "0000:82:00.0": {"trusted": "true", "ours": "x"},
        "0000:82:10.0": {"trusted": "true", "ours": "x"},
    }


def test_tags_are_in_one_form() -> None:
    spec = {
        "vendor_id": "10de",
        "resource_class": "my-gpu",
        "traits": "big, HW_GPU_API_VULKAN,CUSTOM_X,,small one",
        "remote_managed": "Yes",
        "trusted": "off",
        "managed": False,
        "live_migratable": True,
    }
    (found,) = choose(read_specs([json.dumps(spec)]), ALL)
    assert found.tags == {
        "resource_class": "CUSTOM_MY_GPU",
        "traits": "CUSTOM_BIG,CUSTOM_SMALL_ONE,CUSTOM_X,HW_GPU_API_VULKAN",
        "remote_managed": "true",
        "trusted": "false",
        "managed": "no",
        "live_migratable": "true",
    }
    (standard,) = choose(read_specs(['{"vendor_id": "10de", "resource_class": "PGPU"}']), ALL)
    assert standard.tags == {"resource_class": "PGPU"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "this is no JSON"),
        ('"x"', "it has to be a JSON object"),
        ("[{}]", "it says nothing"),
        ('{"devname": "eth0", "address": "*"}', "exclude each other"),
        ('{"devname": ""}', "devname has to be the name"),
        ('{"devname": 1}', "devname has to be the name"),
        ('{"vendor_id": "808"}', None),
        ('{"vendor_id": "80866"}', "vendor_id has to be four hexadecimal digits"),
        ('{"vendor_id": "xyz"}', "vendor_id has to be four hexadecimal digits"),
        ('{"product_id": 5}', "product_id has to be four hexadecimal digits"),
        ('{"address": 5}', "address has to be a text or an object"),
        ('{"address": "0000:81:00:0.0"}', "is no PCI address"),
        ('{"address": "0000:81:00.8"}', "the function '8' is not hexadecimal, or above 7"),
        ('{"address": "0000:81:20.0"}', "the slot '20'"),
        ('{"address": "0000:100:00.0"}', "the bus '100'"),
        ('{"address": "1000000:81:00.0"}', "the domain '1000000'"),
        ('{"address": "0000:8*:00.0"}', "the bus '8\\*' is not hexadecimal"),
        ('{"address": {"bus": "["}}', r"the bus '\[' is no regular expression"),
        ('{"address": {"bus": 5}}', "the bus has to be a regular expression"),
        ('{"address": {"buss": "5"}}', "an address has domain, bus, slot, function, not buss"),
        ('{"vendor_id": "8086", "trusted": "maybe"}', "trusted is 'maybe'; it has to be true or false"),
        ('{"vendor_id": "8086", "managed": "x"}', "managed is 'x'"),
        ('{"vendor_id": "8086", "ours": 5}', "ours has to be a text"),
    ],
)
def test_specs_that_are_none(text: str, words: str | None) -> None:
    if words is None:
        assert read_specs([text])[0].vendor_id == "0808"
        return
    with pytest.raises(Failed, match=words) as caught:
        read_specs([text])
    assert str(caught.value).startswith(f"[pci]device_spec = {text}: ")


def test_a_physical_function_is_not_remote_managed() -> None:
    spec = {"address": "0000:81:00.0", "remote_managed": "true"}
    with pytest.raises(Failed, match=r"0000:81:00\.0 is a physical function"):
        chosen(spec)
    assert chosen({**spec, "product_id": "1515"}) == ["0000:81:10.0", "0000:81:10.1"]


_KEYS = st.sampled_from(["vendor_id", "product_id", "address", "devname", "bus", "trusted", "x"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(st.text() | _VALUES.map(json.dumps))
def test_whatever_is_written_is_read_or_refused(text: str) -> None:
    try:
        specs = read_specs([text])
    except Failed:
        return
    choose(specs, ALL)


# ---- providers ----

NODE = "c0000000-0000-4000-8000-000000000000"


def provider(address: str, cls: str, total: int, *traits: str) -> ProviderReport:
    name = f"node.example_{address}"
    return ProviderReport(
        uuid=nested_uuid(NODE, name),
        name=name,
        parent=NODE,
        inventories={cls: Inventory(total=total, max_unit=total)},
        traits=("COMPUTE_MANAGED_PCI_DEVICE", *traits),
    )


def devices(*specs: dict[str, object], of: Sequence[Found] = ALL) -> tuple[PciDevice, ...]:
    return choose(read_specs([json.dumps(spec) for spec in specs]), of)


def test_devices_as_resource_providers() -> None:
    found = devices(
        {"product_id": "1515", "traits": "fast"},
        {"vendor_id": "10de", "resource_class": "gpu", "traits": "b,a"},
    )
    assert pci_providers(NODE, "node.example", found) == (
        provider("0000:81:00.0", "CUSTOM_PCI_8086_1515", 2, "CUSTOM_FAST"),
        provider("0000:82:00.0", "CUSTOM_PCI_8086_1515", 1, "CUSTOM_FAST"),
        provider("0001:0a:00.0", "CUSTOM_GPU", 1, "CUSTOM_A", "CUSTOM_B"),
    )
    assert pci_providers(NODE, "node.example", devices({"address": "0000:81:00.*"})) == (
        provider("0000:81:00.0", "CUSTOM_PCI_8086_1528", 1),
    )


def test_devices_for_ports_are_no_providers() -> None:
    assert pci_providers(NODE, "n", devices({"devname": "ens1", "physical_network": "p"})) == ()


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ([{"address": "0000:81:00.0"}], r"0000:81:00\.0 together with virtual functions of it"),
        (
            [{"address": "0000:81:10.0", "resource_class": "x"}, {"product_id": "1515"}],
            r"different resource classes \(CUSTOM_PCI_8086_1515; CUSTOM_X\)",
        ),
        (
            [{"address": "0000:81:10.0", "traits": "x"}, {"product_id": "1515"}],
            r"different traits \(CUSTOM_X; none\)",
        ),
    ],
)
def test_devices_that_cannot_be_one_provider(specs: list[dict[str, object]], words: str) -> None:
    with pytest.raises(Failed, match=words):
        pci_providers(NODE, "n", devices(*specs))


def test_providers_are_not_named_by_interfaces() -> None:
    specs = read_specs(['{"devname": "ens1"}', '{"address": "*"}', '{"devname": "ens2"}'])
    with pytest.raises(Failed, match=r"by devname \(ens1, ens2\)"):
        check_specs_without_names([spec.devname for spec in specs])
    check_specs_without_names([specs[1].devname])
