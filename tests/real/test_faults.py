"""What breaks on a host breaks one server at most, says why, and leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.real_cloud import ROOT, SDKS_OWN, RealCloud, lines, running, wait_until
from tests.real.tiny_guest import DEAF, QUITS, image

pytestmark = [pytest.mark.real, *SDKS_OWN]
GRACE = 3  # seconds that a guest has to shut itself down
DAEMONS = Path("/run/kilonova/daemons")
OPTIONS = f"""
[DEFAULT]
shutdown_timeout = {GRACE}
vif_plugging_timeout = 4
vif_plugging_is_fatal = false
"""


def daemons(verb: str) -> None:
    subprocess.run([ROOT / "tools/host-daemons.sh", verb], check=True, capture_output=True, timeout=120)


def kill_daemon(name: str, with_signal: int = signal.SIGKILL) -> None:
    """One of the sandbox's own, by the process that was noted."""
    pid = int((DAEMONS / name).read_text().split()[0])
    os.kill(pid, with_signal)
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or with_signal != signal.SIGKILL, 30)


class Lab:
    """A cloud with guests that are up in no time, and what it must look like when nothing is left."""

    def __init__(self, directory: Path, options: str = OPTIONS, port_offset: int = 0) -> None:
        self.cloud = RealCloud(directory, options, port_offset)
        self.directory = directory
        self.images: dict[int, Any] = {}
        self.client: Any = None
        self.network: Any = None

    def open(self) -> None:
        self.cloud.start()
        self.client = self.cloud.connect()
        self.network = self.client.network.create_network(name="net")
        self.client.network.create_subnet(
            network_id=self.network.id, cidr="10.40.0.0/24", ip_version=4, name="net"
        )

    def image(self, flags: int = 0) -> Any:
        if flags not in self.images:
            file = self.directory / f"tiny-{flags}.raw"
            file.write_bytes(image(flags))
            self.images[flags] = self.client.create_image(
                file.stem, filename=str(file), disk_format="raw", container_format="bare", wait=True
            )
        return self.images[flags]

    def boot(self, name: str, flags: int = 0, **more: Any) -> Any:
        networks = more.pop("networks", [{"uuid": self.network.id}])
        return self.client.compute.create_server(
            name=name, image_id=self.image(flags).id, flavor_id="42", networks=networks, **more
        )

    def reaches(self, server: Any, status: str, wait: float = 120) -> Any:
        def look() -> Any:
            found = self.client.compute.get_server(server.id)
            return found if found.status == status else None

        return wait_until(look, wait, f"{server.name} does not become {status}")

    def delete(self, server: Any) -> None:
        self.client.compute.delete_server(server.id)
        self.client.compute.wait_for_delete(server, wait=120, interval=0.1)

    def nothing_is_left(self) -> None:
        """No guest, disk, port, tap, namespace, claim or quota."""
        wait_until(lambda: not self.cloud.remains(), 60, f"left on the host: {self.cloud.remains()}")
        assert not list(self.client.network.ports(device_owner="compute:nova"))
        limits = self.client.compute.get_limits().absolute
        assert (limits.instances_used, limits.total_cores_used, limits.total_ram_used) == (0, 0, 0)
        placement = self.cloud.connect("kilonova-admin").placement
        for provider in placement.resource_providers():
            usages = placement.get(f"/resource_providers/{provider.id}/usages").json()["usages"]
            assert set(usages.values()) == {0}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("faults"))
    lab.open()
    yield lab
    lab.cloud.stop()


@pytest.fixture(autouse=True)
def _clean(lab: Lab) -> Iterator[None]:
    """Every test ends with nothing left, however it went about it."""
    yield
    for server in lab.client.compute.servers():
        lab.delete(server)
    lab.nothing_is_left()


@pytest.mark.capability("MG-VIF-5", "MG-BLD-16", "MG-BLD-18")
def test_a_guest_that_does_not_start_is_undone(lab: Lab) -> None:
    port = lab.client.network.create_port(network_id=lab.network.id)
    held = hold_tap("tap" + port.id[:11])  # somebody else has the device
    try:
        server = lab.reaches(lab.boot("unlucky", networks=[{"port": port.id}]), "ERROR")
    finally:
        os.close(held)
    assert "busy" in server.fault["message"].lower()
    assert server.compute_host is None
    wait_until(lambda: not lab.cloud.remains(), 60, f"left: {lab.cloud.remains()}")
    kept = lab.client.network.get_port(port.id)  # the user's own port stays, and is free again
    assert (kept.device_id, kept.binding_host_id or "") == ("", "")
    again = lab.reaches(lab.boot("lucky", networks=[{"port": port.id}]), "ACTIVE")
    lab.delete(again)
    lab.client.network.delete_port(port.id)


def hold_tap(name: str) -> int:
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(handle, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0002 | 0x1000))
    return handle


@pytest.mark.capability("MG-VIF-5")
def test_a_switch_that_is_down_fails_the_boot_and_nothing_else(lab: Lab) -> None:
    before = lab.reaches(lab.boot("before"), "ACTIVE")
    kill_daemon("ovs-vswitchd")
    kill_daemon("ovsdb-server")
    try:
        failed = lab.boot("during")
        wait_until(lambda: "compute_plug_vifs" in [each["event"] for each in events(lab, failed)], 60)
    finally:
        daemons("up")
    failed = lab.reaches(failed, "ERROR")  # what is to be undone on the switch has waited for it
    assert "plugged" in failed.fault["message"]
    assert lab.client.compute.get_server(before.id).status == "ACTIVE"
    after = lab.boot("after")
    lab.reaches(after, "ACTIVE")  # the agent has found the switch again
    names = [event["event"] for event in events(lab, after)]
    assert "compute_wait_for_vif_plugged" in names


def events(lab: Lab, server: Any) -> list[dict[str, Any]]:
    (action,) = list(lab.client.compute.server_actions(server))
    found: list[dict[str, Any]] = lab.client.compute.get_server_action(action.request_id, server).events
    return found


@pytest.mark.capability("MG-PWR-1")
def test_a_guest_that_ignores_the_power_button_is_turned_off(lab: Lab) -> None:
    server = lab.reaches(lab.boot("deaf", DEAF), "ACTIVE")
    began = time.monotonic()
    lab.client.compute.stop_server(server)
    lab.reaches(server, "SHUTOFF")
    assert time.monotonic() - began >= GRACE
    assert lines("virsh", "-q", "-c", "qemu:///system", "list", "--name") == []


@pytest.mark.capability("MG-PWR-1", "MG-PWR-2")
def test_a_guest_that_hears_the_power_button_turns_itself_off(lab: Lab) -> None:
    server = lab.reaches(lab.boot("hears"), "ACTIVE")
    wait_until(lambda: "tiny: up" in lab.cloud.console(lab.client, server), 60)
    lab.client.compute.stop_server(server)
    lab.reaches(server, "SHUTOFF")
    assert "tiny: off" in lab.cloud.console(lab.client, server)


@pytest.mark.capability("MG-PER-19", "MG-LCE-1")
def test_a_guest_that_goes_off_by_itself_is_stopped(lab: Lab) -> None:
    server = lab.boot("quits", QUITS)
    lab.reaches(server, "SHUTOFF")
    actions = [each.action for each in lab.client.compute.server_actions(server)]
    assert sorted(actions) == ["create", "stop"]


def test_libvirt_may_restart_under_running_guests(lab: Lab) -> None:
    stays, dies = (lab.reaches(lab.boot(name), "ACTIVE") for name in ("stays", "dies"))
    kill_daemon("libvirtd")
    assert len(running("qemu-system")) == 2
    os.kill(qemu_of(dies.id), signal.SIGKILL)  # while nobody looks
    late = lab.boot("late")
    daemons("up")
    lab.reaches(dies, "SHUTOFF")
    lab.reaches(late, "ACTIVE")  # its boot waited
    assert lab.client.compute.get_server(stays.id).status == "ACTIVE"
    assert "tiny: up" in lab.cloud.console(lab.client, stays)
    lab.client.compute.stop_server(stays)
    lab.reaches(stays, "SHUTOFF")


def qemu_of(uuid: str) -> int:
    for pid in running("qemu-system"):
        if uuid.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    raise AssertionError(f"no QEMU of {uuid}")


@pytest.mark.capability("MG-VIF-4", "OVS-11")
def test_a_guest_whose_port_is_not_wired_is_cut_off_until_it_is(lab: Lab, tmp_path: Path) -> None:
    """With ``vif_plugging_is_fatal = false`` a guest may run before its port is wired: isolated."""
    file = tmp_path / "kn-guest.qcow2"
    subprocess.run([ROOT / "tools/guest-image/build.sh", file], check=True, capture_output=True)
    kn_guest = lab.client.create_image(
        "kn-guest", filename=str(file), disk_format="qcow2", container_format="bare", wait=True
    )
    port = lab.client.network.create_port(network_id=lab.network.id, admin_state_up=False)
    server = lab.client.compute.create_server(
        name="cut off", image_id=kn_guest.id, flavor_id="42", networks=[{"port": port.id}]
    )
    lab.reaches(server, "ACTIVE")
    dead = ("4095", "trunk", "[4095]")
    text = lab.cloud.wait_for_line(lab.client, server, " ready")
    assert switch_port("tap" + port.id[:11]) == dead
    assert "net eth0" not in text  # nobody has given it an address
    lab.client.network.update_port(port.id, admin_state_up=True)
    address = port.fixed_ips[0]["ip_address"]
    lab.cloud.wait_for_line(lab.client, server, f"ip={address}/24")
    tag, mode, trunks = switch_port("tap" + port.id[:11])
    assert (mode, trunks) == ("access", "[]") and tag not in ("[]", "4095")
    lab.delete(server)
    lab.client.network.delete_port(port.id)


def switch_port(name: str) -> tuple[str, ...]:
    columns = ("tag", "vlan_mode", "trunks")
    return tuple(lines("ovs-vsctl", "--timeout=10", "get", "Port", name, *columns))


def test_a_full_disk_fails_the_boot_and_leaves_no_piece_of_the_image(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A second cloud beside the first one on the same host; its guests' disks are on a small file system."""
    options = OPTIONS + "[ovs]\nintegration_bridge = br-small\n"
    small = Lab(tmp_path_factory.mktemp("small"), options, port_offset=100)
    small.cloud.bridge = "br-small"
    instances = small.cloud.state / "instances"
    instances.mkdir(parents=True)
    rule = "os_compute_api:servers:create:zero_disk_flavor"
    (small.cloud.state / "policy.yaml").write_text(f'"{rule}": "rule:project_member_or_admin"\n')
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", instances], check=True)
    try:
        small.open()
        big = small.directory / "big.raw"
        big.write_bytes(os.urandom(1 << 20) * 24)
        made = small.client.create_image(
            "big", filename=str(big), disk_format="raw", container_format="bare", wait=True
        )
        admin = small.cloud.connect("kilonova-admin")
        flavor = admin.compute.create_flavor(name="as it is", ram=64, vcpus=1, disk=0)
        networks = [{"uuid": small.network.id}]
        failed = small.client.compute.create_server(
            name="too big", image_id=made.id, flavor_id=flavor.id, networks=networks
        )
        failed = small.reaches(failed, "ERROR")
        assert "space" in failed.fault["message"].lower()
        assert [path.name for path in instances.rglob("*") if path.is_file()] == []
        fits = small.client.compute.create_server(
            name="fits", image_id=small.image().id, flavor_id=flavor.id, networks=networks
        )
        fits = small.reaches(fits, "ACTIVE")
        for server in (failed, fits):
            small.delete(server)
        small.nothing_is_left()
    finally:
        small.cloud.stop()
        subprocess.run(["umount", instances], check=True)


@pytest.mark.capability("MG-INIT-12")
@pytest.mark.parametrize("after", [0.1, 0.5, 1.0, 2.0])
def test_a_cloud_that_is_killed_in_boots_and_deletes_finishes_them(lab: Lab, after: float) -> None:
    servers = [lab.boot(f"s{number}") for number in range(4)]
    time.sleep(after)  # the moment is the parameter: a thousand places to die in
    lab.cloud.kill()
    lab.cloud.start()
    for server in servers:
        lab.reaches(server, "ACTIVE")
    assert len(running("qemu-system")) == len(servers)
    for server in servers:
        lab.client.compute.delete_server(server.id)
    time.sleep(after / 4)
    lab.cloud.kill()
    lab.cloud.start()
    for server in servers:
        lab.client.compute.wait_for_delete(server, wait=120, interval=0.1)
