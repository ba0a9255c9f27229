"""One real guest, a small Linux, through its life: the tests of this file follow each other."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from kilonova.errors import TryAgain
from kilonova.model.instance import ImageMeta
from kilonova.rpc.messages import GuestSpec
from tests.real.guests import eventually
from tests.real.libvirt_host import (
    RUNNING,
    SHUTDOWN,
    Host,
    kill_libvirtd,
    kill_process,
    opened,
    port,
    qemu_pid,
    start_libvirtd,
    tap,
)
from tests.unit.virt.sources import guest

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

USER_DATA = b"#!/bin/sh\necho done >/run/user-data-was-here\n"
BUILD = Path(__file__).parents[2] / "tools/guest-image/build.sh"


class Life:
    def __init__(self, host: Host, spec: GuestSpec) -> None:
        self.host = host
        self.spec = spec
        self.driver = host.driver

    async def page(self) -> str:
        """What the guest's web server has to say of it."""

        def fetch() -> str:
            with urllib.request.urlopen("http://10.9.0.2/", timeout=60) as answer:
                return str(answer.read().decode())

        return await asyncio.to_thread(fetch)


@pytest.fixture(scope="module")
def disk_image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("image") / "kn-guest.qcow2"
    subprocess.run([BUILD, path], check=True)
    return path.read_bytes()


def image_of(host: Host, data: bytes) -> ImageMeta:
    return host.images.add(
        data,
        disk_format="qcow2",
        hash_algo="sha512",
        hash_value=hashlib.sha512(data).hexdigest(),
    )


def drive_of(spec: GuestSpec) -> dict[str, bytes]:
    """The parts of a config drive that the guest uses."""
    meta = {"uuid": spec.uuid, "name": spec.name, "hostname": "life.example.org"}
    network = {"networks": [{"ip_address": "10.9.0.2", "netmask": "255.255.255.0", "gateway": "10.9.0.1"}]}
    latest = "openstack/latest"
    return {
        f"{latest}/meta_data.json": json.dumps(meta).encode(),
        f"{latest}/network_data.json": json.dumps(network).encode(),
        f"{latest}/user_data": USER_DATA,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def life(tmp_path_factory: pytest.TempPathFactory, disk_image: bytes) -> AsyncIterator[Life]:
    """The guest, booted until it says that it is ready."""
    vif = port()
    async with opened(tmp_path_factory.mktemp("host") / "instances") as host:
        spec = guest(
            image_of(host, disk_image),
            name="life",
            vifs=(vif,),
            flavor={"memory_mb": 128, "vcpus": 1, "root_gb": 1, "ephemeral_gb": 1, "swap_mb": 8},
        )
        spec = msgspec.structs.replace(spec, config_drive=drive_of(spec))
        with tap(vif, address="10.9.0.1/24"):
            await host.driver.prepare(spec, host.images)
            await host.driver.start(spec, paused=True)
            await host.driver.resume(spec.uuid)
            await host.says(spec, b" ready")
            yield Life(host, spec)


async def test_it_boots_from_its_disk_which_has_the_flavors_size(life: Life) -> None:
    output = (await life.host.says(life.spec, b" ready")).decode(errors="replace")
    boot = next(line for line in output.splitlines() if " boot kernel=" in line)
    assert "cpus=1 " in boot
    memory = int(boot.split("mem_kb=")[1])
    assert 64 << 10 < memory <= 128 << 10
    assert f"disk vda bytes={1 << 30} " in output
    assert "boots=1" in output


async def test_it_reads_its_config_drive(life: Life) -> None:
    output = (await life.host.says(life.spec, b"user_data rc=0")).decode(errors="replace")
    assert " configdrive dev=" in output
    assert f"metadata source=configdrive uuid={life.spec.uuid} name=life keys=0" in output
    digest = hashlib.sha256(USER_DATA).hexdigest()[:16]
    assert f"user_data bytes={len(USER_DATA)} sum={digest}" in output


@pytest.mark.capability("OVS-3")
async def test_its_interface_is_the_tap_that_was_made_for_it(life: Life) -> None:
    vif = life.spec.vifs[0]
    await life.host.says(life.spec, b"net eth0 static ip=10.9.0.2")
    assert life.spec.uuid in await life.page()
    neighbours = subprocess.run(
        ["ip", "neighbour", "show", "dev", vif.devname], capture_output=True, text=True, check=True
    )
    assert vif.mac in neighbours.stdout
    xml = await life.host.domain_xml(life.spec)
    assert "interface type='ethernet'" in xml and "managed='no'" in xml


@pytest.mark.capability("MG-PWR-10")
async def test_its_counters(life: Life) -> None:
    found = await life.driver.diagnostics(life.spec.uuid)
    assert (found.state, found.hypervisor, found.config_drive) == ("running", "qemu", True)
    assert [cpu.id for cpu in found.cpus] == [0]
    assert found.cpus[0].time is not None and found.cpus[0].time > 100_000_000
    assert found.uptime is not None and found.uptime > 0
    assert found.memory_maximum == 128
    assert len(found.disks) == 4  # root, ephemeral, swap, config drive
    root = found.disks[0]
    assert root.read_bytes is not None and root.read_bytes > 1 << 20
    assert root.write_requests is not None and root.write_requests > 0
    (nic,) = found.nics
    assert nic.mac_address == life.spec.vifs[0].mac
    assert nic.tx_packets is not None and nic.tx_packets > 0

    async def it_tells_its_memory() -> bool:
        used = (await life.driver.diagnostics(life.spec.uuid)).memory_used
        return used is not None and 0 < used < 128

    await eventually(it_tells_its_memory, 60)  # every ten seconds, by its balloon


async def test_libvirtd_dies_and_comes_back_under_the_running_guest(life: Life) -> None:
    host, spec = life.host, life.spec
    other = await host.running()
    host.told.clear()
    kill_libvirtd()
    with pytest.raises(TryAgain, match="libvirtd"):
        await life.driver.power_state(spec.uuid)
    assert spec.uuid in await life.page()  # it has not noticed
    assert b" ready" in await life.driver.console_output(spec.uuid, 1 << 20)
    kill_process(qemu_pid(other))  # while nobody looks
    before = qemu_pid(spec)
    start_libvirtd()
    await host.is_told(other, SHUTDOWN)

    async def both_are_seen() -> bool:
        return await life.driver.guests() == {spec.uuid: RUNNING, other.uuid: SHUTDOWN}

    await eventually(both_are_seen, 60)
    assert qemu_pid(spec) == before
    assert (spec.uuid, SHUTDOWN) not in host.told
    host.told.clear()
    await life.driver.start(other, paused=False)
    await host.is_told(other, RUNNING)  # events flow again
    await life.driver.undefine(other.uuid)
    await life.driver.discard(other.uuid)


async def test_a_soft_reboot_is_heard_of_and_keeps_qemu(life: Life) -> None:
    before = qemu_pid(life.spec)
    life.host.told.clear()
    assert await life.driver.request_reboot(life.spec.uuid) is True
    assert await life.driver.power_state(life.spec.uuid) == RUNNING
    output = await life.host.says(life.spec, b" ready", times=2)
    assert b"acpi power button" in output or b"stopping" in output  # its own orderly end
    assert b"boots=2" in output
    assert qemu_pid(life.spec) == before
    assert (life.spec.uuid, SHUTDOWN) not in life.host.told


async def test_the_power_button_ends_it_and_nothing_is_left(life: Life) -> None:
    life.host.told.clear()
    pid = qemu_pid(life.spec)
    await life.driver.request_shutdown(life.spec.uuid)
    await life.host.comes_to(life.spec, SHUTDOWN)
    await life.host.is_told(life.spec, SHUTDOWN)
    assert b"stopping" in (await life.driver.console_output(life.spec.uuid, 4096))
    assert not os.path.exists(f"/proc/{pid}")
    await life.driver.undefine(life.spec.uuid)
    await life.driver.discard(life.spec.uuid)
    assert await life.driver.guests() == {}
    assert [path.name for path in life.host.instances.iterdir()] == ["_base"]
