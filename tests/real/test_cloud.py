"""The first light: unmodified clients boot real guests on a real switch, and nothing is left after them."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kilonova.errors import Unreachable
from tests.real.real_cloud import ROOT, SDKS_OWN, RealCloud, wait_until

pytestmark = [pytest.mark.real, *SDKS_OWN]

USER_DATA = b"#!/bin/sh\necho hello from user data\n"


@pytest.fixture(scope="module")
def image_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("image") / "kn-guest.qcow2"
    subprocess.run([ROOT / "tools/guest-image/build.sh", file], check=True, capture_output=True)
    return file


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    cloud = RealCloud(tmp_path_factory.mktemp("cloud"))
    cloud.start()
    yield cloud
    cloud.stop()


class Project:
    """What a user has: an image, a key, two networks whose guests may be asked for pages."""

    def __init__(self, cloud: RealCloud, image_file: Path) -> None:
        self.cloud = cloud
        self.client = cloud.connect()
        self.image = self.client.create_image(
            "kn-guest", filename=str(image_file), disk_format="qcow2", container_format="bare", wait=True
        )
        self.networks = [self._network(f"net{n}", f"10.{n}.0.0/24") for n in (30, 31)]
        group = self.client.network.find_security_group("default")
        for protocol, port in (("icmp", None), ("tcp", 80)):
            self.client.network.create_security_group_rule(
                security_group_id=group.id,
                direction="ingress",
                protocol=protocol,
                port_range_min=port,
                port_range_max=port,
            )
        self.key = self.client.compute.create_keypair(name="key", public_key=public_key(), type="ssh")

    def _network(self, name: str, cidr: str) -> Any:
        network = self.client.network.create_network(name=name)
        self.client.network.create_subnet(network_id=network.id, cidr=cidr, ip_version=4, name=name)
        return network

    def boot(self, name: str, network: Any, **more: Any) -> Any:
        return self.client.compute.create_server(
            name=name,
            image_id=self.image.id,
            flavor_id="42",
            networks=[{"uuid": network.id}],
            **more,
        )

    def active(self, server: Any) -> Any:
        return self.client.compute.wait_for_server(server, wait=180, interval=0.2)


def public_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate().public_key()
    form = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return key.public_bytes(*form).decode() + " test"


@pytest.fixture(scope="module")
def project(cloud: RealCloud, image_file: Path) -> Project:
    return Project(cloud, image_file)


class Guests:
    """a and b on the first network, c on the second."""

    def __init__(self, project: Project) -> None:
        first, second = project.networks
        user_data = base64.b64encode(USER_DATA).decode()
        made = {
            "a": project.boot("a", first, key_name="key", config_drive=True, user_data=user_data),
            "b": project.boot("b", first, key_name="key"),
            "c": project.boot("c", second),
        }
        self.by_name = {name: project.active(server) for name, server in made.items()}
        self.addresses = {
            name: next(iter(server.addresses.values()))[0]["addr"] for name, server in self.by_name.items()
        }
        self.consoles = {
            name: project.cloud.wait_for_line(project.client, server, " ready")
            for name, server in self.by_name.items()
        }


@pytest.fixture(scope="module")
def guests(project: Project) -> Guests:
    return Guests(project)


def test_a_guest_boots_from_an_uploaded_image_and_gets_its_address_by_dhcp(guests: Guests) -> None:
    for name, console in guests.consoles.items():
        assert f"ip={guests.addresses[name]}/24" in console
        assert "mtu=" in console


def test_a_config_drive_has_the_servers_documents(guests: Guests) -> None:
    server = guests.by_name["a"]
    digest = hashlib.sha256(USER_DATA).hexdigest()[:16]
    console = guests.consoles["a"]
    assert "kn: " in console and "configdrive dev=" in console
    assert f"metadata source=configdrive uuid={server.id} name=a keys=1" in console
    assert f"user_data bytes={len(USER_DATA)} sum={digest}" in console


def test_the_metadata_service_knows_who_asks(project: Project, guests: Guests) -> None:
    server = guests.by_name["b"]
    line = f"metadata source=service uuid={server.id} name=b keys=1"
    project.cloud.wait_for_line(project.client, server, line)
    said = project.cloud.shell(project.networks[0].id, guests.addresses["b"], "cat /run/meta_data.json")
    document = json.loads(said[: said.rindex("rc=0")])
    assert document["uuid"] == server.id
    assert document["public_keys"]["key"] == project.key.public_key


def test_a_guest_answers_http(project: Project, guests: Guests) -> None:
    page = project.cloud.page(project.networks[0].id, guests.addresses["a"])
    assert page.startswith("HTTP/1.") and " 200 " in page.splitlines()[0]
    assert f"uuid={guests.by_name['a'].id}" in page


def test_guests_of_one_network_reach_each_other_and_others_do_not(project: Project, guests: Guests) -> None:
    first, second = (network.id for network in project.networks)
    a, b, c = (guests.addresses[name] for name in "abc")
    assert project.cloud.shell(first, a, f"ping -c 2 -W 10 {b}").endswith("rc=0\n")
    fetch = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 10 {b} 80"
    assert "uuid=" + guests.by_name["b"].id in project.cloud.shell(first, a, fetch)
    alone = f"ip route replace {c}/32 dev eth0; ping -c 2 -W 2 {c}"  # as if it were on the same wire
    assert project.cloud.shell(first, a, alone).endswith("rc=1\n")
    assert project.cloud.shell(second, c, f"ip route replace {a}/32 dev eth0; ping -c 2 -W 2 {a}").endswith(
        "rc=1\n"
    )
    with pytest.raises(Unreachable):
        project.cloud.page(second, a, timeout=3)


@pytest.mark.capability("MG-BLD-12", "MG-VIF-3", "OVS-25")
def test_the_console_and_the_actions_tell_what_happened(project: Project, guests: Guests) -> None:
    server = guests.by_name["a"]
    (action,) = list(project.client.compute.server_actions(server))
    assert action.action == "create"
    events = project.client.compute.get_server_action(action.request_id, server).events
    names = [event["event"] for event in events]
    # It was wired before it was let run.
    assert names.index("compute_wait_for_vif_plugged") < names.index("compute_resume_guest")
    assert all(event["result"] == "Success" for event in events)


@pytest.mark.capability("MG-PWR-3", "MG-PWR-1")
def test_stop_start_and_reboot(project: Project, guests: Guests) -> None:
    client, server = project.client, guests.by_name["b"]
    client.compute.stop_server(server)
    client.compute.wait_for_server(server, status="SHUTOFF", wait=120, interval=0.2)
    assert "acpi power button" in project.cloud.console(client, server)
    client.compute.start_server(server)
    project.active(server)
    project.cloud.wait_for_line(client, server, " ready", times=2)
    client.compute.reboot_server(server, "HARD")
    project.active(server)
    project.cloud.wait_for_line(client, server, " ready", times=3)
    network, address = project.networks[0].id, guests.addresses["b"]
    wait_until(lambda: server.id in project.cloud.page(network, address), 60, "metadata after the reboot")


def test_a_killed_cloud_finds_its_guests_again(project: Project, guests: Guests, cloud: RealCloud) -> None:
    server = guests.by_name["a"]
    before = cloud.shell(project.networks[0].id, guests.addresses["a"], "cat /proc/sys/kernel/random/boot_id")
    late = project.boot("late", project.networks[0])
    cloud.kill()
    # Guests run on, and their network with them.
    after = cloud.shell(project.networks[0].id, guests.addresses["a"], "cat /proc/sys/kernel/random/boot_id")
    assert after == before
    cloud.start()
    assert project.client.compute.get_server(server.id).status == "ACTIVE"
    project.active(late)  # goes on where it was
    project.client.compute.delete_server(late)
    project.client.compute.wait_for_delete(late, wait=120, interval=0.2)


@pytest.mark.capability("MG-DEL-2")
def test_everything_is_gone_after_the_deletes(project: Project, guests: Guests, cloud: RealCloud) -> None:
    for server in guests.by_name.values():
        project.client.compute.delete_server(server)
    for server in guests.by_name.values():
        project.client.compute.wait_for_delete(server, wait=120, interval=0.2)
    wait_until(lambda: not cloud.remains(), 60, f"left on the host: {cloud.remains()}")
    assert list(project.client.network.ports(device_owner="compute:nova")) == []
    usage = cloud.connect("kilonova-admin").placement
    (provider,) = usage.resource_providers()
    used = usage.get(f"/resource_providers/{provider.id}/usages").json()["usages"]
    assert set(used.values()) == {0}
