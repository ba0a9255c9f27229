"""Network cards come to and leave a guest that runs, waits or is off, on libvirt: where they are on its bus,
what is stored of them, and a guest that does not let go.

The guests are of a boot sector, which knows of no hot plug: one that lets go is in test_two_hosts_isolation.
"""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kilonova.errors import HostFault
from kilonova.rpc.messages import GuestSpec
from kilonova.virt.libvirt.xml.addresses import interface_of, mac_of
from tests.real.libvirt_host import PAUSED, RUNNING, SHUTDOWN, Host, opened, port, tap

pytestmark = pytest.mark.real

Places = dict[str, str]
"""Device -> its place on the PCI bus."""


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with opened(tmp_path / "instances", detach_attempts=2, detach_timeout=0.5) as made:
        yield made


async def places(host: Host, spec: GuestSpec, *, stored: bool = False) -> Places:
    """Of the disk, the network cards (in their order) and the rest, as the guest has it or as it will."""
    flags = host.driver._connection.libvirt.VIR_DOMAIN_XML_INACTIVE if stored else 0
    text: str = await host.driver._connection.call(
        lambda link: link.lookupByUUIDString(spec.uuid).XMLDesc(flags)
    )
    found = {}
    for device in ET.fromstring(text).iterfind("devices/*"):
        address = device.find("address")
        if address is not None and address.get("type") == "pci":
            name = (
                mac_of(device) or f"{device.tag} {device.get('type', '')} {device.get('index', '')}".strip()
            )
            found[name] = f"{address.get('bus')}:{address.get('slot')}.{address.get('function')}"
    return found


def cards(found: Places) -> list[str]:
    return [name for name in found if name.startswith("fa:16:3e")]


@pytest.mark.capability("MG-DEV-7")
@pytest.mark.parametrize("machine", ["pc", "q35"])
async def test_cards_stay_where_they_are(host: Host, machine: str) -> None:
    """A q35 machine has places for a dozen; and nothing moves when the guest is defined anew."""
    *vifs, late = [port(number) for number in range(1, 11)]
    with contextlib.ExitStack() as plugged:
        for vif in (*vifs, late):
            plugged.enter_context(tap(vif))
        spec = host.tiny(properties={"hw_machine_type": machine})
        spec = msgspec.structs.replace(spec, vifs=(vifs[0],))
        await host.driver.prepare(spec, host.images)
        await host.driver.start(spec, paused=True)
        before = await places(host, spec)
        for vif in vifs[1:]:
            for _ in range(2):
                await host.driver.attach_interface(spec, vif)
        running = await places(host, spec)
        assert cards(running) == [vif.mac for vif in vifs]
        assert len(set(running.values())) == len(running)
        assert {name: place for name, place in running.items() if name in before} == before
        assert await places(host, spec, stored=True) == running
        # Somebody takes a card from what is stored: a place is free there, which the guest itself uses.
        await forget(host, spec, vifs[1].mac)
        for vif in (late, vifs[1]):
            await host.driver.attach_interface(spec, vif)
        running = await places(host, spec)
        assert await places(host, spec, stored=True) == running
        # Off, two cards fewer, one of them back, and defined anew as a start or a hard reboot does it.
        await host.driver.power_off(spec.uuid)
        for _ in range(2):
            await host.driver.detach_interface(spec, vifs[0])
            await host.driver.detach_interface(spec, vifs[3])
        await host.driver.attach_interface(spec, vifs[3])
        left = (vifs[2], *vifs[4:], late, vifs[1], vifs[3])
        assert cards(await places(host, spec, stored=True)) == [vif.mac for vif in left]
        await host.driver.start(msgspec.structs.replace(spec, vifs=left), paused=True)
        again = await places(host, spec)
        assert cards(again) == [vif.mac for vif in left]
        gone = {vifs[0].mac, vifs[3].mac}
        assert {name: place for name, place in again.items() if name not in gone} == {
            name: place for name, place in running.items() if name not in gone
        }
        await host.driver.undefine(spec.uuid)


async def forget(host: Host, spec: GuestSpec, mac: str) -> None:
    """Take a card from the guest's stored definition only."""
    libvirt = host.driver._connection.libvirt

    def work(link: Any) -> None:
        domain = link.lookupByUUIDString(spec.uuid)
        card = interface_of(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), mac)
        assert card is not None
        domain.detachDeviceFlags(ET.tostring(card, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    await host.driver._connection.call(work)


@pytest.mark.capability("MG-DEV-8")
async def test_a_guest_that_keeps_its_card_keeps_all_of_it(host: Host) -> None:
    vif, late = port(1), port(2)
    with tap(vif), tap(late):
        spec = await host.running(vifs=(vif,))
        await host.driver.attach_interface(spec, late)
        before = await places(host, spec)
        for _ in range(2):
            with pytest.raises(HostFault, match=f"{late.mac}.*asked 2 times.*0.5 seconds"):
                await host.driver.detach_interface(spec, late)
            assert await places(host, spec) == await places(host, spec, stored=True) == before
        await host.driver.power_off(spec.uuid)
        await host.driver.detach_interface(spec, late)
        assert cards(await places(host, spec, stored=True)) == [vif.mac]
        assert await host.driver.power_state(spec.uuid) == SHUTDOWN


@pytest.mark.capability("MG-DEV-7")
async def test_what_cannot_be_attached_says_why_and_leaves_nothing(host: Host) -> None:
    vif = port(1)
    spec = await host.prepared()
    with pytest.raises(HostFault, match=f"{vif.port_id} is not plugged"):
        await host.driver.attach_interface(spec, vif)
    with tap(vif):
        await host.driver.attach_interface(spec, vif)  # not defined yet: its start gives it
        await host.driver.detach_interface(spec, vif)
        await host.driver.start(spec, paused=False)
        before = await places(host, spec)
        foreign = msgspec.structs.replace(vif, vif_type="hw_veb")
        with pytest.raises(HostFault, match="hw_veb"):
            await host.driver.attach_interface(spec, foreign)
        with pytest.raises(HostFault, match="does not take the network card"):
            await host.driver.attach_interface(spec, msgspec.structs.replace(vif, mac="01:00:5e:00:00:01"))
        assert await places(host, spec) == await places(host, spec, stored=True) == before
        assert await host.driver.power_state(spec.uuid) in (RUNNING, PAUSED)
