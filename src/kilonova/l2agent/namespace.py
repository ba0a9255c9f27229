"""Network namespaces of the host: made and removed with ip(8), entered by threads that end afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kilonova.errors import HostFault, NotFound
from kilonova.programs import ProgramFailed, run

T = TypeVar("T")

_WHERE = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def namespace_name(network_id: str, prefix: str = "kn") -> str:
    """The namespace of a network on its hosts, e.g. ``kn-3fa85f6457a1``."""
    return f"{prefix}-{_short(network_id)}"


def device_name(network_id: str, prefix: str = "kn") -> str:
    """The network's own port on the switch, e.g. ``knd3fa85f6457a1``; 15 characters at most."""
    return f"{prefix}d{_short(network_id)}"[:15]


def _short(network_id: str) -> str:
    digits = network_id.replace("-", "").lower()
    if not re.fullmatch(r"[0-9a-f]{32}", digits):  # no uuid: any name will do, but never as it stands
        digits = hashlib.sha256(network_id.encode()).hexdigest()
    return digits[:12]


def exists(name: str) -> bool:
    return (_WHERE / name).exists()


async def create(name: str) -> None:
    """Nothing happens if it is there.  Raises HostFault."""
    _check(name)
    if exists(name) and not is_whole(name):
        await remove(name)
    if not exists(name):
        await run("ip", "netns", "add", name)
    await run("ip", "-n", name, "link", "set", "lo", "up")


def is_whole(name: str) -> bool:
    """False for what is left of a namespace when "ip netns add" was killed halfway: a file and no more."""
    with contextlib.suppress(FileNotFoundError):
        return (_WHERE / name).stat().st_dev != _WHERE.stat().st_dev
    return False


async def remove(name: str) -> None:
    """Nothing happens if it is not there.  Devices that only this namespace holds go with it."""
    _check(name)
    if exists(name):
        await run("ip", "netns", "del", name)


async def adopt_device(name: str, device: str) -> bool:
    """Move a device of the host into the namespace; False if it was there already.  Raises HostFault."""
    _check(name)
    _check(device)
    devices = await inside(name, lambda: {found for _, found in socket.if_nameindex()})
    if device not in {found for _, found in socket.if_nameindex()}:
        if device not in devices:
            raise HostFault(f"There is no device '{device}' on this host nor in its namespace '{name}'.")
        return False
    if device in devices:  # what is left of it when the userspace switch died; it belongs to nothing now
        await run("ip", "-n", name, "link", "delete", "dev", device)
    # "dev" must be written out: "ip link set t ..." would read a device "t" as an abbreviation
    await run("ip", "link", "set", "dev", device, "netns", name)
    return True


async def set_addresses(name: str, device: str, addresses: list[str], mtu: int) -> None:
    """Give the device exactly these addresses (with prefix lengths), its MTU, and set it up.

    Raises HostFault.
    """
    _check(name)
    _check(device)
    shown = await run("ip", "-n", name, "-o", "addr", "show", "dev", device, "scope", "global")
    present = {line.split()[3] for line in shown.splitlines()}
    wanted = list(dict.fromkeys(addresses))
    lines = [f"link set dev {device} mtu {mtu} up"]
    lines += [f"addr del {address} dev {device}" for address in sorted(present - set(wanted))]
    lines += [f"addr add {address} dev {device}" for address in wanted if address not in present]
    await run("ip", "-n", name, "-batch", "-", stdin="\n".join(lines) + "\n")


async def inside(name: str, work: Callable[[], T]) -> T:
    """Run ``work`` in a thread of its own that is in the namespace: for opening sockets there.

    A socket belongs to the namespace in which it was opened, whoever uses it later.  Raises NotFound if
    there is no such namespace, and what ``work`` raises.
    """
    _check(name)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(result: T | None, error: BaseException | None) -> None:
        if done.done():  # the caller has gone
            if isinstance(result, socket.socket):
                result.close()
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # without an error there is a result

    def body() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            _enter(name)
            result = work()
        except BaseException as caught:  # noqa: BLE001  # handed to the caller, whatever it is
            error = caught
        loop.call_soon_threadsafe(finish, result, error)

    threading.Thread(target=body, name=f"in {name}", daemon=True).start()
    return await done


def _enter(name: str) -> None:
    try:
        handle = os.open(_WHERE / name, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"There is no network namespace '{name}' on this host.") from None
    except OSError as error:
        raise HostFault(f"The network namespace '{name}' cannot be opened: {error.strerror}.") from error
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise HostFault(
                f"The network namespace '{name}' cannot be entered: {reason}. Only root may enter one."
            )
    finally:
        os.close(handle)


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise HostFault(f"'{name}' is no name for a network namespace or a device.")


__all__ = [
    "ProgramFailed",
    "adopt_device",
    "create",
    "device_name",
    "exists",
    "inside",
    "is_whole",
    "namespace_name",
    "remove",
    "set_addresses",
]
