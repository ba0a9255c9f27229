"""Devices stay where they are when a guest is defined anew."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.virt.libvirt.xml.addresses import interface_of, mac_of, placed

PC, Q35 = "pc-i440fx-7.2", "q35"


def at(slot: int) -> str:
    return f'<address type="pci" domain="0x0000" bus="0x00" slot="{slot:#04x}" function="0x0"/>'


def domain(*devices: str, machine: str = PC) -> str:
    kind = f"<os><type machine='{machine}'>hvm</type></os>"
    return f"<domain>{kind}<devices>{''.join(devices)}</devices></domain>"


def card(number: int, address: str = "", model: str = "virtio") -> str:
    mac = f'<mac address="fa:16:3E:00:00:{number:02x}"/>'
    return f'<interface type="ethernet">{mac}<model type="{model}"/>{address}</interface>'


def disk(name: str, address: str = "") -> str:
    return f'<disk type="file"><target dev="{name}" bus="virtio"/>{address}</disk>'


def places(text: str) -> dict[str, str | None]:
    """Network cards and disks by name, with their slots."""
    found = {}
    for device in ET.fromstring(text).iterfind("devices/*"):
        target, address = device.find("target"), device.find("address")
        name = mac_of(device) or (target.get("dev", "") if target is not None else device.tag)
        found[name] = None if address is None else address.get("slot")
    return found


def test_what_both_have_is_kept_and_the_rest_is_for_libvirt() -> None:
    old = domain(
        disk("vda", at(4)), card(1, at(3)), card(2, at(7)), "<rng model='virtio'>" + at(6) + "</rng>"
    )
    new = domain(disk("vda"), disk("vdb"), card(2), card(3), "<rng model='virtio'/>")
    assert places(placed(new, old)) == {
        "vda": "0x04",
        "vdb": None,
        "fa:16:3e:00:00:02": "0x07",
        "fa:16:3e:00:00:03": None,
        "rng": "0x06",
    }


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (domain(card(1), machine=Q35), domain(card(1, at(3)))),
        (domain(card(1)), domain(card(1, at(3)), machine="pc-q35-7.2")),
        (domain(card(1, model="e1000")), domain(card(1, at(3)))),
        (domain(card(1)), domain(card(1))),
        (domain(card(1)), domain(card(1, '<address type="ccw" slot="1"/>'))),
        (domain(card(1)), domain()),
    ],
    ids=["another machine", "and back", "another model", "no address", "another bus", "nothing"],
)
def test_nothing_is_kept(new: str, old: str) -> None:
    assert placed(new, old) == new


def test_an_alias_of_the_machine_is_the_same_machine() -> None:
    new = placed(domain(card(1), machine="q35"), domain(card(1, at(3)), machine="pc-q35-7.2"))
    assert list(places(new).values()) == ["0x03"]


def test_a_place_that_is_given_is_not_changed_and_bridges_are_left_alone() -> None:
    bridge = "<controller type='pci' model='pcie-root-port'>{}</controller>"
    new = domain(card(1, at(9)), bridge.format(""))
    assert placed(new, domain(card(1, at(3)), bridge.format(at(2)))) == new


@given(st.lists(st.integers(1, 9), unique=True), st.lists(st.integers(1, 9), unique=True))
def test_whatever_comes_and_goes(old: list[int], new: list[int]) -> None:
    before = domain(*(card(number, at(10 + number)) for number in old))
    after = places(placed(domain(*(card(number) for number in new)), before))
    assert list(after.values()) == [f"{10 + number:#04x}" if number in old else None for number in new]


def test_a_card_is_found_by_its_mac() -> None:
    text = domain(card(1), card(2, at(5)))
    found = interface_of(text, "FA:16:3e:00:00:02")
    assert found is not None and found.find("address") is not None
    assert interface_of(text, "fa:16:3e:00:00:03") is None
    assert interface_of(domain("<interface type='user'/>"), "fa:16:3e:00:00:03") is None
