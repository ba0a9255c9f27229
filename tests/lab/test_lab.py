"""The lab's hosts are what tests of moves take them for: apart, connected, mortal, and gone in the end."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from kilonova.testing.fleet.daemon import DidNotStart
from kilonova.testing.lab.host import Complaint, Host
from kilonova.testing.lab.inside import SHARE, STATE
from kilonova.testing.lab.lab import Lab

pytestmark = pytest.mark.real

URI = "qemu+tcp://{}/system"
ASK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).close()
except OSError as error:
    sys.exit(type(error).__name__)
"""
ASK_QUICKLY = ASK.replace("timeout=2", "timeout=0.9")  # before a lost packet is sent again
SAY = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.sendto(sys.argv[3].encode(), (sys.argv[1], int(sys.argv[2])))
"""
HEAR = """
import socket, sys
hearer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
hearer.bind((sys.argv[1], int(sys.argv[2])))
print("ready", flush=True)
while True:
    print(hearer.recv(100).decode(), flush=True)
"""


def reaches(host: Host, address: str, port: int) -> bool:
    try:
        host.run("python3", "-c", ASK, address, str(port))
    except Complaint:
        return False
    return True


async def test_hosts_are_apart_and_reach_each_other(lab: Lab) -> None:
    one, other = lab.hosts
    for host in lab.hosts:
        uri = URI.format(host.address)
        assert host.run("virsh", "-q", "-c", uri, "hostname").strip() == host.name
    assert one.run("hostname").strip() == "host1"
    assert reaches(one, other.address, 16509) and reaches(other, one.address, 16509)
    assert reaches(one, "host2", 16509)
    with socket.create_connection((one.address, 16509), timeout=5):
        pass  # the controller's side

    # the same paths, other files; but for what they share
    one.run("touch", "/var/lib/kilonova/mine", "/run/mine", f"{SHARE}/ours")
    assert one.path("/var/lib/kilonova/mine").exists()
    for path in ("/var/lib/kilonova/mine", "/run/mine"):
        with pytest.raises(Complaint):
            other.run("test", "-e", path)
    other.run("test", "-e", f"{SHARE}/ours")


async def test_switches_of_two_hosts_have_tunnels(lab: Lab) -> None:
    one, other = lab.hosts
    for host, peer, address in ((one, other, "10.9.9.1"), (other, one, "10.9.9.2")):
        host.run("ovs-vsctl", "add-br", "br-x", "--", "set", "bridge", "br-x", "datapath_type=netdev")
        options = f"options:remote_ip={peer.tunnel_address}"
        tunnel = ("type=vxlan", options, f"options:local_ip={host.tunnel_address}", "options:key=7")
        host.run("ovs-vsctl", "add-port", "br-x", "vx", "--", "set", "Interface", "vx", *tunnel)
        host.run("ip", "address", "add", f"{address}/24", "dev", "br-x")
        host.run("ip", "link", "set", "br-x", "up")
    hearer = other.spawn("hear", "python3", "-c", HEAR, "10.9.9.2", "9")
    await hearer.start(b"ready")
    await _say_until(one, "10.9.9.2", "through", hearer.log)


async def _say_until(host: Host, address: str, word: str, log: Path) -> None:
    async with asyncio.timeout(20):
        while word not in log.read_text():
            host.run("python3", "-c", SAY, address, "9", word)
            await asyncio.sleep(0.05)


async def test_links_are_cut_and_healed_in_either_direction(lab: Lab) -> None:
    one, other = lab.hosts
    to_other = other.spawn("hear", "python3", "-c", HEAR, other.address, "9")
    to_one = one.spawn("hear", "python3", "-c", HEAR, one.address, "9")
    await asyncio.gather(to_other.start(b"ready"), to_one.start(b"ready"))
    await asyncio.gather(
        _say_until(one, other.address, "before", to_other.log),
        _say_until(other, one.address, "before", to_one.log),
    )
    lab.cut(one, other, both=False)
    one.run("python3", "-c", SAY, other.address, "9", "lost")
    await _say_until(other, one.address, "back", to_one.log)
    assert not reaches(one, other.address, 16509)
    lab.heal()
    await _say_until(one, other.address, "after", to_other.log)
    assert "lost" not in to_other.log.read_text()

    lab.cut(None, other)
    with pytest.raises(OSError):
        socket.create_connection((other.address, 16509), timeout=1)
    assert not reaches(other, "10.199.0.1", 16509)
    assert reaches(one, other.address, 16509), "the others are not cut"
    lab.heal()
    socket.create_connection((other.address, 16509), timeout=5).close()


async def test_a_processs_life_and_death(lab: Lab) -> None:
    host, _ = lab.hosts
    script = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    daemon = host.spawn("it", "bash", "-c", script)
    await daemon.start(b"ready")
    assert "trap" in Path(f"/proc/{daemon.pid}/cmdline").read_text()
    daemon.pause()
    async with asyncio.timeout(20):
        while _state(daemon.pid) != "T":
            await asyncio.sleep(0.01)
    daemon.resume()
    async with asyncio.timeout(20):
        while _state(daemon.pid) == "T":
            await asyncio.sleep(0.01)
    assert await daemon.stop() == 3
    assert "told" in daemon.log.read_text()

    await daemon.start(b"ready")
    daemon.pause()
    await daemon.kill()
    assert not daemon.alive
    with pytest.raises(Complaint):
        host.run("pgrep", "-f", "trap .echo told")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


async def test_a_power_cut_takes_everything_but_the_disk(lab: Lab) -> None:
    host, other = lab.hosts
    daemon = host.spawn("it", "bash", "-c", "echo ready; sleep 1000")
    await daemon.start(b"ready")
    host.run("bash", "-c", "echo kept >/var/lib/kilonova/file; (setsid sleep 1000 >/dev/null 2>&1 &)")
    host.run("touch", "/run/lost")
    host.run("ovs-vsctl", "add-br", "br-kept")
    host.daemons["libvirtd"].pause()  # whatever state it is in
    pid = daemon.pid
    mac = Path("/sys/class/net/lab-m/address").read_text()
    assert mac == "02:00:00:00:6d:00\n", "not that of the lowest port, which may go"
    server = socket.create_server(("10.199.0.1", 0))
    port = server.getsockname()[1]
    other.run("python3", "-c", ASK_QUICKLY, "10.199.0.1", str(port))
    await host.power_off()
    assert not host.alive and not Path(f"/proc/{pid}").exists()
    assert not [path for path in Path("/proc").glob("[0-9]*") if _in(path, "setsid sleep", "sleep\0001000")]
    with pytest.raises(DidNotStart):
        host.run("true")
    other.run("python3", "-c", ASK_QUICKLY, "10.199.0.1", str(port))  # the others do not notice
    assert Path("/sys/class/net/lab-m/address").read_text() == mac, "others would go on using the old one"
    assert not reaches(other, host.address, 16509)

    server.close()
    await host.power_on()
    assert host.run("cat", "/var/lib/kilonova/file") == "kept\n"
    host.run("test", "!", "-e", "/run/lost")
    assert "br-kept" in host.run("ovs-vsctl", "list-br").split()
    async with asyncio.timeout(20):
        while not reaches(other, host.address, 16509):
            pass  # it may still believe that nobody has this address


def _in(path: Path, *words: str) -> bool:
    try:
        return any(word in (path / "cmdline").read_text() for word in words)
    except OSError:
        return False


async def test_a_hosts_daemons_die_and_are_started_again(lab: Lab) -> None:
    host, _ = lab.hosts
    for name, start in (
        ("libvirtd", host.start_libvirtd),
        ("ovs-vswitchd", host.start_vswitchd),
        ("ovsdb-server", host.start_ovsdb),
    ):
        await host.daemons[name].kill()
        await start()
    assert host.run("virsh", "-q", "-c", "qemu:///system", "list", "--all").strip() == ""
    assert "br-phy" in host.run("ovs-vsctl", "list-br").split()


async def test_a_slow_link(lab: Lab) -> None:
    other = lab.hosts[1]
    lab.slow(other, 10)
    assert json.loads(_qdisc())[0]["kind"] == "tbf"
    lab.slow(other, 20)
    lab.slow(other, None)
    assert json.loads(_qdisc())[0]["kind"] != "tbf"


def _qdisc() -> str:
    return subprocess.run(
        ["tc", "-j", "qdisc", "show", "dev", "m2"], check=True, capture_output=True, text=True
    ).stdout


async def test_a_disk_is_full_outlives_a_power_cut_and_goes_with_the_lab(tmp_path: Path) -> None:
    lab = Lab(tmp_path, disk_mib=8)
    (host,) = await lab.up(1)
    write = ("dd", "if=/dev/zero", f"of={STATE.parent}/file", "bs=64k", "count=16")
    host.fill_disk()
    with pytest.raises(Complaint, match="No space left"):
        host.run(*write)
    host.free_disk()
    host.run(*write)
    await host.power_off()
    await host.power_on()
    assert host.run("stat", "-c", "%s", f"{STATE.parent}/file").strip() == str(1 << 20)
    await lab.down()
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


async def test_nothing_is_left_when_it_goes_down(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    (host,) = await lab.up(1)
    inits = [each.init for each in lab.hosts]
    await host.daemons["virtlogd"].kill()
    await lab.down()
    assert not [pid for pid in inits if Path(f"/proc/{pid}").exists()]
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith(("lab-", "m1", "u1"))]
