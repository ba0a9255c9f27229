"""A real host of a cloud of many: its agent is a process of its own that has nothing but the bus.

All that a guest needs comes that way: its image in pieces, its address, its metadata.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.errors import Unreachable
from kilonova.testing.fleet.daemon import Daemon
from kilonova.testing.fleet.fleet import Fleet
from tests.real.real_cloud import SDKS_OWN, RealCloud, wait_until
from tests.real.test_cloud import Project, image_file

pytestmark = [pytest.mark.real, *SDKS_OWN]

__all__ = ["image_file"]

HOST = "host1"


class RealFleet(RealCloud):
    """One controller and one real host, with the same view of guests as a cloud in one process."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.fleet = Fleet(directory, controllers=1, safe=False)
        self.state = directory / "controller-0"
        self.agent: Daemon | None = None

    def start(self) -> None:
        async def up() -> Daemon:
            await self.fleet.up()
            return await self.fleet.agent(
                HOST, driver="libvirt", options="[libvirt]\nvirt_type = qemu\ntb_cache_size = 32\n"
            )

        self.agent = asyncio.run(up())

    def stop(self) -> None:
        asyncio.run(self.fleet.down())

    def remains(self) -> dict[str, list[str]]:
        self.state, kept = self.fleet.directory / HOST, self.state
        try:
            return super().remains()
        finally:
            self.state = kept


@pytest.fixture(scope="module")
def cloud() -> Iterator[RealFleet]:
    directory = Path(tempfile.mkdtemp(prefix="kn-real-"))
    made = RealFleet(directory)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def project(cloud: RealFleet, image_file: Path) -> Project:
    return Project(cloud, image_file)


@pytest.fixture(scope="module")
def guest(project: Project) -> Any:
    server = project.active(project.boot("far", project.networks[0], key_name="key"))
    project.cloud.wait_for_line(project.client, server, " ready")
    return server


def address(server: Any) -> str:
    return str(next(iter(server.addresses.values()))[0]["addr"])


def test_a_guest_has_its_image_address_and_metadata_over_the_bus(project: Project, guest: Any) -> None:
    console = project.cloud.console(project.client, guest)
    assert f"ip={address(guest)}/24" in console
    line = f"metadata source=service uuid={guest.id} name=far keys=1"
    project.cloud.wait_for_line(project.client, guest, line)
    assert "kn-guest" in project.cloud.page(project.networks[0].id, address(guest))


def test_a_guest_outlives_its_agent_and_obeys_the_next_one(
    cloud: RealFleet, project: Project, guest: Any
) -> None:
    assert cloud.agent is not None
    asyncio.run(cloud.agent.kill())
    assert "kn-guest" in cloud.page(project.networks[0].id, address(guest))
    project.client.compute.stop_server(guest)  # asked for while nobody is there to do it
    asyncio.run(cloud.agent.start(b"ready"))
    project.client.compute.wait_for_server(guest, status="SHUTOFF", wait=180, interval=0.2)
    project.client.compute.start_server(guest)
    project.active(guest)
    network = project.networks[0].id
    assert wait_until(lambda: served(cloud, network, guest), 300, "the guest did not come back")


def served(cloud: RealFleet, network: str, guest: Any) -> bool:
    try:
        return "kn-guest" in cloud.page(network, address(guest))
    except Unreachable:
        return False


def test_nothing_is_left_of_a_guest_that_was_deleted(cloud: RealFleet, project: Project, guest: Any) -> None:
    project.client.compute.delete_server(guest)
    project.client.compute.wait_for_delete(guest, wait=120)
    wait_until(lambda: not cloud.remains(), 60, "something is left on the host")
