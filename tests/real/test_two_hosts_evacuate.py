"""A real host loses its power, or its way to the controllers: its guest runs on elsewhere, and never twice
once the host is heard again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.testing.lab.host import Host
from tests.real.real_cloud import SDKS_OWN, wait_until
from tests.real.test_cloud import Project, image_file
from tests.real.two_hosts import KEEP, KEPT, TwoHosts, ask, two_hosts

pytestmark = [pytest.mark.real, *SDKS_OWN]

__all__ = ["image_file"]


@pytest.fixture(scope="module", params=["block", "shared"])
def cloud(request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    with two_hosts(shared=request.param == "shared") as made:
        yield made


@pytest.fixture(scope="module")
def project(cloud: TwoHosts, image_file: Path) -> Project:
    return Project(cloud, image_file)


def is_up(cloud: TwoHosts, host: Host) -> bool:
    services = cloud.admin.compute.services(binary="nova-compute", host=host.name)
    return [each.state for each in services] == ["up"]


def evacuated(cloud: TwoHosts, server: Any, version: str) -> tuple[str, str]:
    """The migration's status after it and the server's, which stays off from 2.95 on."""
    path, wish = f"/servers/{server.id}/action", {"evacuate": {}}
    answer = cloud.admin.compute.post(path, json=wish, microversion=version)
    assert answer.status_code == 200, answer.text
    status = str(cloud.wait_migrated(server, "done", "completed", "error", "failed").status)
    return status, str(cloud.at_rest(server).status)


def test_a_host_without_power(cloud: TwoHosts, project: Project) -> None:
    guest = cloud.boot_ready(project, "survivor")
    source = cloud.host_of(guest)
    target = cloud.cloud.other(source.name)
    station = cloud.station(project.networks[0], target)
    kept = ask(station, guest, KEEP)
    asyncio.run(source.power_off())
    wait_until(lambda: not is_up(cloud, source), 60, "the host does not go down")
    assert evacuated(cloud, guest, "2.95") == ("done", "SHUTOFF")
    assert cloud.host_of(guest) is target
    project.client.compute.start_server(guest)
    if cloud.shared:
        assert ask(station, guest, KEPT) == kept
    else:
        assert "rc=0" in ask(station, guest, "test ! -e /data/kept"), "it is made anew from its image"
    asyncio.run(source.power_on())
    asyncio.run(cloud.cloud.start_agent(source))
    wait_until(lambda: is_up(cloud, source), 60, "the host does not come up")
    cloud.wait_migrated(guest, "completed")
    cloud.is_only_on(guest, target, shared=cloud.shared)
    ask(station, guest, "true")
    project.client.compute.delete_server(guest)


def test_a_host_that_nobody_hears_still_runs_its_guest(cloud: TwoHosts, project: Project) -> None:
    guest = cloud.boot_ready(project, "twice")
    source = cloud.host_of(guest)
    target = cloud.cloud.other(source.name)
    kept = ask(cloud.station(project.networks[0], source), guest, KEEP)
    cloud.cloud.lab.cut(None, source)
    wait_until(lambda: not is_up(cloud, source), 60, "the host does not go down")
    status, server = evacuated(cloud, guest, "2.94")
    if cloud.shared:  # the guest that nobody hears keeps others from its disk
        assert status in ("error", "failed")
        assert "lock" in cloud.admin.compute.get_server(guest.id).fault["message"]
        assert (cloud.host_of(guest), cloud.running_on(guest)) == (source, [source.name])
        where = source
    else:
        assert (status, server) == ("done", "ACTIVE")
        assert (cloud.host_of(guest), len(cloud.running_on(guest))) == (target, 2)
        where = target
    cloud.cloud.lab.heal()
    wait_until(lambda: is_up(cloud, source), 60, "the host does not come back")
    cloud.is_only_on(guest, where, shared=cloud.shared)
    if cloud.shared:
        assert ask(cloud.stations[-1], guest, KEPT) == kept
    else:
        cloud.wait_migrated(guest, "completed")
        assert "rc=0" in ask(cloud.stations[-1], guest, "test ! -e /data/kept")
    project.client.compute.delete_server(guest)
