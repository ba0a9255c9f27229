"""DHCP for one network by dnsmasq: fixed leases only, without DNS.

dnsmasq runs on when we end and is found again by its pid file.  A new lease is a line in the file of hosts
and SIGHUP, which dnsmasq obeys before it reads the next packet; any other change is a new configuration and a
new process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from kilonova.errors import HostFault, Invalid, TryAgain
from kilonova.l2agent.files import write_whole
from kilonova.l2agent.flows import METADATA_ADDRESS
from kilonova.model.wiring import DhcpSubnet, NetworkDetails
from kilonova.programs import SEARCHED, run

_LEASE = 86400  # seconds
_LOOK, _LOOKS = 0.002, 2500  # seconds between two looks at a new process, and how many; a busy one serves
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_ROUTER, _DNS, _DOMAIN, _MTU, _ROUTES = 3, 6, 15, 26, 121


def served(network: NetworkDetails) -> list[DhcpSubnet]:
    """The subnets that are served: IPv4 with DHCP.  (IPv6 addresses come with the config drive.)"""
    return [subnet for subnet in network.subnets if subnet.dhcp and ":" not in subnet.cidr]


def configuration(network: NetworkDetails, device: str, directory: Path, domain: str) -> str:
    """The text of dnsmasq.conf.  Raises Invalid."""
    lines = [
        "port=0",
        f"interface={device}",
        "bind-interfaces",
        "except-interface=lo",
        "no-hosts",
        "no-resolv",
        "no-ping",
        "leasefile-ro",
        "dhcp-authoritative",
        f"dhcp-lease-max={max(1000, 2 * len(network.hosts))}",
        f"dhcp-hostsfile={directory / 'hosts'}",
        f"pid-file={directory / 'pid'}",
        f"dhcp-option-force={_MTU},{network.mtu}",
    ]
    if domain:
        if not all(_HOSTNAME.fullmatch(part) for part in domain.split(".")):
            raise Invalid(f"'{domain}' is no domain for DHCP.")
        lines.append(f"domain={domain}")
    for number, subnet in enumerate(served(network)):
        lines += _subnet(subnet, f"subnet{number}")
    return "\n".join(lines) + "\n"


def _subnet(subnet: DhcpSubnet, tag: str) -> list[str]:
    cidr = _network(subnet.cidr)
    server = _address(subnet.server)
    routes = [f"{METADATA_ADDRESS}/32,{server}"]
    for target, hop in subnet.routes:
        routes.append(f"{_network(target)},{_address(hop)}")
    router = "" if subnet.gateway is None else f",{_address(subnet.gateway)}"
    if router:
        routes.append(f"0.0.0.0/0{router}")
    servers = "".join(f",{_address(dns)}" for dns in subnet.dns if ":" not in dns)
    return [
        f"dhcp-range=set:{tag},{cidr.network_address},static,{cidr.netmask},{_LEASE}s",
        # An option without a value is not sent; otherwise dnsmasq names itself as router and DNS server.
        f"dhcp-option=tag:{tag},{_ROUTER}{router}",
        f"dhcp-option=tag:{tag},{_DNS}{servers}",
        f"dhcp-option=tag:{tag},{_ROUTES},{','.join(routes)}",
    ]


def hosts(network: NetworkDetails) -> str:
    """The text of the file of hosts: one fixed lease a line.  Raises Invalid."""
    lines = []
    for host in network.hosts:
        if ":" in host.address:
            continue
        if not _MAC.fullmatch(host.mac):
            raise Invalid(f"'{host.mac}' is no MAC address.")
        name = f",{host.hostname}" if _HOSTNAME.fullmatch(host.hostname) else ""
        lines.append(f"{host.mac.lower()},{_address(host.address)}{name}")
    return "".join(f"{line}\n" for line in sorted(set(lines)))


def _address(text: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise Invalid(f"'{text}' is no IPv4 address.") from None


def _network(text: str) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        raise Invalid(f"'{text}' is no range of IPv4 addresses.") from None


class DhcpServer:
    """The dnsmasq of one network; its files are in ``directory``.

    ``on_end`` is called in the event loop when it has ended without our doing.
    """

    def __init__(
        self, namespace: str, device: str, directory: Path, domain: str, on_end: Callable[[], None]
    ) -> None:
        self._namespace = namespace
        self._device = device
        self._directory = directory
        self._domain = domain
        self._on_end = on_end
        self._told = False  # whether the process knows the leases that are in the file
        self._watched: int | None = None  # its pidfd

    @property
    def pid(self) -> int | None:
        """The process that runs for us, or None.  A number that was reused by another program is not it."""
        found = self._process()
        return found[0] if found else None

    def _process(self) -> tuple[int, str] | None:
        """Its number and the name of the file that it was configured with."""
        try:
            pid = int((self._directory / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except (OSError, ValueError):
            return None
        ours = f"--conf-file={self._directory}/dnsmasq-"
        names = [word.rpartition("/")[2] for word in command if word.startswith(ours)]
        return (pid, names[0]) if names else None

    async def ensure(self, network: NetworkDetails, *, restart: bool = False) -> None:
        """Serve what ``network`` says.  ``restart``: the device is a new one.  Raises HostFault, Invalid."""
        if not served(network):
            await self.stop()
            return
        settings = configuration(network, self._device, self._directory, self._domain)
        # The file is named by its content: so a running process tells what it was configured with.
        name = f"dnsmasq-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.conf"
        self._told = not write_whole(self._directory / "hosts", hosts(network)) and self._told
        process = self._process()
        if process is None or process[1] != name or restart:
            await self.stop()
            for stale in self._directory.glob("dnsmasq-*.conf"):
                stale.unlink()
            write_whole(self._directory / name, settings)
            await self._start(name)
        elif not self._told:
            self._signal(signal.SIGHUP)
        self._told = True
        self._watch()

    def _watch(self) -> None:
        """A pidfd becomes readable when the process ends."""
        if self._watched is not None:
            return
        handle = self._open()
        if handle is None:
            self._on_end()
            return
        self._watched = handle
        asyncio.get_running_loop().add_reader(handle, self._ended)

    def _ended(self) -> None:
        self.leave()
        self._on_end()

    def leave(self) -> None:
        """Watch it no longer; it runs on."""
        if self._watched is not None:
            asyncio.get_running_loop().remove_reader(self._watched)
            os.close(self._watched)
            self._watched = None

    async def stop(self) -> None:
        """End the process and wait until it has let go of its port.  Raises TryAgain if it does not end."""
        self.leave()
        for number in (signal.SIGTERM, signal.SIGKILL):
            handle = self._signal(number, keep=True)
            if handle is None or await _ended(handle):
                (self._directory / "pid").unlink(missing_ok=True)
                return
        raise TryAgain(f"dnsmasq (process {self.pid}) of {self._namespace} does not end.")

    def _signal(self, number: signal.Signals, *, keep: bool = False) -> int | None:
        """Signal exactly our process; None if there is none.  ``keep`` gives a handle on it (pidfd)."""
        handle = self._open()
        if handle is None:
            return None
        with contextlib.suppress(ProcessLookupError):  # ended just now; the handle tells that
            signal.pidfd_send_signal(handle, number)
        if keep:
            return handle
        os.close(handle)
        return None

    def _open(self) -> int | None:
        """A handle on exactly our process; None if there is none."""
        pid = self.pid
        if pid is None:
            return None
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        if self.pid == pid:  # looked at again: it may have ended before the handle was there
            return handle
        os.close(handle)
        return None

    async def _start(self, name: str) -> None:
        program = shutil.which("dnsmasq", path=SEARCHED)
        if program is None:
            raise HostFault("dnsmasq is not installed on this host; guests get their addresses from it.")
        user = "nobody" if _readable_by_all(self._directory) else "root"
        # It goes into the background when its sockets are open, so that a return means that it serves.
        await run(
            *("ip", "netns", "exec", self._namespace, program),
            f"--conf-file={self._directory / name}",
            f"--user={user}",
        )
        await self._until_it_listens()

    async def _until_it_listens(self) -> None:
        """Until it sleeps: then it waits in its loop for packets and signals.

        It lets go of us a moment earlier, and what is signalled in that moment it ignores.
        """
        for _ in range(_LOOKS):
            pid = self.pid
            if pid is None:
                raise TryAgain(f"dnsmasq ended as soon as it was started in {self._namespace}.")
            if _sleeps(pid):
                return
            await asyncio.sleep(_LOOK)


def _sleeps(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("S")
    except OSError:  # it has ended just now
        return False


async def _ended(handle: int, timeout: float = 2.0) -> bool:
    """Wait for the end of the process behind a pidfd, which becomes readable then; closes the handle."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[None] = loop.create_future()
    loop.add_reader(handle, lambda: None if end.done() else end.set_result(None))
    try:
        async with asyncio.timeout(timeout):
            await end
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    return True


def _readable_by_all(directory: Path) -> bool:
    """Whether an unprivileged dnsmasq could read its files again after SIGHUP."""
    return all(path.stat().st_mode & 0o001 for path in (directory, *directory.parents))
