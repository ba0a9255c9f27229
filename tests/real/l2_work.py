"""What tests with several hosts do on one of them: see `l2_hosts.FarHost.run`."""

from __future__ import annotations

import contextlib
import os

from kilonova.clock import SystemClock
from kilonova.l2agent.cleanup import clean_up
from kilonova.l2agent.flows import METADATA_ADDRESS
from kilonova.l2agent.reach import open_connection_in
from kilonova.model.port import Vif
from kilonova.programs import run
from tests.real.dhcp_client import Lease, ask_dhcp
from tests.real.guests import _tap
from tests.real.l2_hosts import (
    FarLab,
)
from tests.real.l2lab import BRIDGE, DATABASE, kill_daemon, start_vswitchd


async def serve_echo(lab: FarLab, vif: Vif, port: int) -> None:
    server = lab.guest(vif.port_id).echo_server(port)
    await server.__aenter__()
    lab.kept[f"echo {vif.port_id}"] = server


async def end_echo(lab: FarLab, vif: Vif) -> None:
    await lab.kept.pop(f"echo {vif.port_id}").__aexit__(None, None, None)


async def listen(lab: FarLab, vif: Vif) -> None:
    """Record what reaches the guest."""
    wire = lab.guest(vif.port_id).tap_wire()
    lab.kept[f"wire {vif.port_id}"] = (wire, await wire.__aenter__())


async def heard(lab: FarLab, vif: Vif) -> list[bytes]:
    frames: list[bytes] = lab.kept[f"wire {vif.port_id}"][1].frames
    return frames


async def listen_at_tap(lab: FarLab, vif: Vif) -> None:
    """Record what reaches the port of a guest that does not run here: all that will ever be read there."""
    lab.kept[f"tap {vif.port_id}"] = _tap(vif.devname)


async def heard_at_tap(lab: FarLab, vif: Vif) -> list[bytes]:
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frames.append(os.read(lab.kept[f"tap {vif.port_id}"], 65536))
    return frames


async def leave_tap(lab: FarLab, vif: Vif) -> None:
    os.close(lab.kept.pop(f"tap {vif.port_id}"))


async def send(lab: FarLab, vif: Vif, *frames: bytes) -> None:
    await lab.guest(vif.port_id).send(*frames)


async def lease(lab: FarLab, vif: Vif, wait: float) -> Lease | None:
    return await ask_dhcp(lab.guest(vif.port_id), wait)


async def metadata(lab: FarLab, vif: Vif, server: str) -> str:
    """Who answers at the address of the metadata service: the network, and who asked."""
    guest = lab.guest(vif.port_id)
    await guest.ip(f"route replace {METADATA_ADDRESS}/32 via {server}")
    reader, writer = await open_connection_in(guest.namespace, METADATA_ADDRESS, 80, timeout=30)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    return answer.partition("\r\n\r\n")[2]


async def learnt(lab: FarLab, mac: str) -> list[str]:
    """The ports where the switch has learnt that MAC address, as it prints them."""
    shown = await run("ovs-appctl", "fdb/show", BRIDGE)
    return [line.split()[0] for line in shown.splitlines()[1:] if line.split()[2] == mac]


async def number_of(lab: FarLab, name: str) -> int | None:
    port = lab.switch.ports().get(name)
    return port.ofport if port else None


async def restart_switch(lab: FarLab) -> None:
    await kill_daemon("ovs-vswitchd")
    start_vswitchd()
    await run("ip", "address", "replace", f"{lab.local_ip}/24", "dev", "br-phy")
    await run("ip", "link", "set", "br-phy", "up")


async def vsctl(lab: FarLab, *words: str) -> None:
    await run("ovs-vsctl", "--timeout=30", *words)


async def clean_host(lab: FarLab) -> list[str]:
    return await clean_up(DATABASE, lab.options(), SystemClock())


async def forget_macs(lab: FarLab) -> None:
    await run("ovs-appctl", "fdb/flush", BRIDGE)
