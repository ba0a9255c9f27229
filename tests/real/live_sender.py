"""An agent's driver as a process of its own, which sends one guest: to be killed while it does.

    python -m tests.real.live_sender SOCKET INSTANCES COMPUTE_ID ADDRESS BANDWIDTH ORDER

``ORDER`` is a file with the guest and the plan, as they travel.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from kilonova.clock import SystemClock
from kilonova.rpc.messages import GuestSpec
from kilonova.rpc.moves import LivePlan
from kilonova.virt.libvirt.driver import LibvirtDriver
from kilonova.virt.libvirt.live_options import LiveOptions
from kilonova.virt.libvirt.options import LibvirtOptions


class Order(msgspec.Struct, frozen=True):
    guest: GuestSpec
    plan: LivePlan


async def main(
    socket: str, instances: str, compute_id: str, address: str, bandwidth: str, order: str
) -> None:
    options = LibvirtOptions(
        connection_uri=f"qemu+unix:///system?socket={socket}",
        virt_type="qemu",
        live=LiveOptions(address=address, bandwidth=int(bandwidth)),
    )
    driver = LibvirtDriver(options, "source", compute_id, Path(instances), SystemClock())
    await driver.open(lambda uuid, state: None)
    wanted = msgspec.msgpack.decode(Path(order).read_bytes(), type=Order)
    await driver.send_live(wanted.guest, wanted.plan)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
