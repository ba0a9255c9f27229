"""A pinned server with large pages, from an unmodified client to QEMU's threads, over a restart of all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real import tiny_guest
from tests.real.libvirt_host import large_pages, threads
from tests.real.real_cloud import SDKS_OWN, RealCloud, wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow, *SDKS_OWN]

OPTIONS = """
[DEFAULT]
compute_monitors = virt_driver
reserved_huge_pages = node:0,size:2048,count:2
cpu_allocation_ratio = 3.0
[compute]
cpu_shared_set = 0
cpu_dedicated_set = 1
provider_config_location = {files}
"""
EXTRA = """
meta: {schema_version: '1.0'}
providers:
  - identification: {uuid: $COMPUTE_NODE}
    inventories: {additional: [{CUSTOM_LICENSE: {total: 3}}]}
    traits: {additional: [CUSTOM_LICENSED]}
"""
PINNED = {"hw:cpu_policy": "dedicated", "hw:mem_page_size": "2MB", "resources:CUSTOM_LICENSE": "1"}


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[RealCloud]:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one CPU cannot be shared and dedicated")
    files = tmp_path / "files"
    files.mkdir()
    (files / "license.yaml").write_text(EXTRA)
    cloud = RealCloud(tmp_path, OPTIONS.format(files=files))
    with large_pages(40):
        cloud.start()
        yield cloud
        cloud.stop()


def flavor(client: Any, name: str, specs: dict[str, str]) -> Any:
    made = client.compute.create_flavor(name=name, ram=64, vcpus=1, disk=1)
    return client.compute.create_flavor_extra_specs(made, specs)


def inventories(client: Any) -> dict[str, dict[str, Any]]:
    (provider,) = client.placement.get("/resource_providers", microversion="1.39").json()[
        "resource_providers"
    ]
    path = f"/resource_providers/{provider['uuid']}"
    found: dict[str, dict[str, Any]] = client.placement.get(f"{path}/inventories").json()["inventories"]
    traits = client.placement.get(f"{path}/traits", microversion="1.39").json()["traits"]
    assert "CUSTOM_LICENSED" in traits and "COMPUTE_NODE" in traits
    return found


@pytest.mark.capability("RT-15", "RT-29", "RT-30")
def test_a_pinned_server_with_large_pages(cloud: RealCloud, tmp_path: Path) -> None:
    client = cloud.connect("kilonova-admin")
    stock = inventories(client)
    assert (stock["PCPU"]["total"], stock["PCPU"]["allocation_ratio"]) == (1, 1.0)
    assert (stock["VCPU"]["total"], stock["VCPU"]["allocation_ratio"]) == (1, 3.0)
    assert (stock["CUSTOM_LICENSE"]["total"], stock["MEMORY_MB"]["reserved"]) == (3, 512)
    file = tmp_path / "tiny.raw"
    file.write_bytes(tiny_guest.image())
    image = client.create_image(
        "tiny", filename=str(file), disk_format="raw", container_format="bare", wait=True
    )

    def boot(name: str, kind: Any) -> Any:
        server = client.compute.create_server(
            name=name, image_id=image.id, flavor_id=kind.id, networks="none"
        )
        wait_until(lambda: client.compute.get_server(server.id).status in ("ACTIVE", "ERROR"), 180)
        made = client.compute.get_server(server.id)
        assert made.status == "ACTIVE", made.fault
        return made

    def runs_right() -> None:
        assert threads(pinned.id)["CPU 0/TCG"] == {1}
        assert threads(floating.id)["CPU 0/TCG"] == {0}
        status = Path(f"/proc/{qemu(pinned.id)}/status").read_text()
        assert f"HugetlbPages:\t{64 * 1024:8d} kB" in status

    pinned = boot("pinned", flavor(client, "pinned", PINNED))
    floating = boot("floating", client.compute.find_flavor("m1.nano") or flavor(client, "plain", {}))
    runs_right()
    used = client.placement.get(f"/allocations/{pinned.id}").json()["allocations"]
    (held,) = used.values()
    assert held["resources"] == {"PCPU": 1, "MEMORY_MB": 64, "DISK_GB": 1, "CUSTOM_LICENSE": 1}

    cloud.kill()
    cloud.start()
    client = cloud.connect("kilonova-admin")
    runs_right()
    client.compute.reboot_server(pinned, "HARD")
    client.compute.wait_for_server(pinned, wait=180, interval=0.2)
    cloud.wait_for_line(client, pinned, "tiny: up", times=2)
    runs_right()

    with pytest.raises(AssertionError, match="No valid host"):
        boot("too much", client.compute.find_flavor("pinned"))
    for server in client.compute.servers():
        client.compute.delete_server(server)
        client.compute.wait_for_delete(server, wait=60)
    boot("again", client.compute.find_flavor("pinned"))
    for server in client.compute.servers():
        client.compute.delete_server(server)
        client.compute.wait_for_delete(server, wait=60)


def qemu(uuid: str) -> int:
    """Its process."""
    return int(Path(f"/run/libvirt/qemu/{uuid}.pid").read_text())
