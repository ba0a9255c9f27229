"""A whole cloud on this sandbox as a user has it: the process, its clients, its guests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kilonova.errors import Unreachable
from kilonova.l2agent.namespace import namespace_name
from kilonova.l2agent.reach import open_connection_in

# openstacksdk meets its own deprecations, and leaves the file open that it has uploaded
SDKS_OWN = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in (
        "DeprecationWarning",
        "PendingDeprecationWarning",
        "ResourceWarning",
        "pytest.PytestUnraisableExceptionWarning",
    )
]
ROOT = Path(__file__).resolve().parents[2]
READY = 120.0  # seconds that the cloud may take; the machine is busy
GUEST = 300.0  # seconds from power on to "ready" that a guest under TCG may take on a busy machine


def wait_until(check: Callable[[], Any], timeout: float = 60.0, what: str = "") -> Any:
    """What ``check`` gives once it is true.  Raises TimeoutError."""
    until = time.monotonic() + timeout
    while not (result := check()):
        if time.monotonic() > until:
            raise TimeoutError(what or "it did not happen in time")
        time.sleep(0.05)
    return result


class RealCloud:
    """``start``, ``stop`` or ``kill``, and ``start`` again on the same state."""

    def __init__(self, directory: Path, options: str = "", port_offset: int = 0) -> None:
        self.state = directory / "state"
        self.config = directory / "nova.conf"
        libvirt = "[libvirt]\nvirt_type = qemu\ntb_cache_size = 32\nstopped_event_delay = 1\n"
        self.config.write_text(f"{libvirt}{options}")
        self.output = directory / "output"
        self.bridge = "br-int"
        self._offset = port_offset
        self.process: subprocess.Popen[bytes] | None = None
        self._others: list[str] | None = None  # domains of clouds that were here before

    def start(self) -> None:
        if self._others is None:
            self._others = domains()
        command = [sys.executable, "-m", "kilonova.cli", "up", "--state-dir", str(self.state)]
        command += ["--config-file", str(self.config), "--port-offset", str(self._offset)]
        with self.output.open("ab") as output:
            already = output.tell()
            self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)

        def ready() -> bool:
            assert self.process is not None and self.process.poll() is None, self.said()[-2000:]
            return "\nready" in "\n" + self.said()[already:]

        wait_until(ready, READY, "the cloud is not ready")

    def said(self) -> str:
        return self.output.read_text()

    @property
    def log(self) -> str:
        return (self.state / "kilonova.log").read_text()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(30)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def connect(self, cloud: str = "kilonova") -> Any:
        """An openstacksdk connection."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of its own use of itself
            from openstack import connection
            from openstack.config.loader import OpenStackConfig

            loader = OpenStackConfig(config_files=[str(self.state / "clouds.yaml")], load_envvars=False)
            return connection.Connection(config=loader.get_one(cloud))

    # ---- guests ----

    def console(self, client: Any, server: Any) -> str:
        return str(client.compute.get_server_console_output(server.id)["output"]).replace("\r", "")

    def wait_for_line(self, client: Any, server: Any, part: str, times: int = 1) -> str:
        """The console once ``part`` stands in it so many times."""

        def look() -> str:
            text = self.console(client, server)
            assert "Kernel panic" not in text, text
            return text if text.count(part) >= times else ""

        text: str = wait_until(look, GUEST, f"'{part}' is not on the console of {server.name}")
        return text

    def shell(self, network_id: str, address: str, script: str, timeout: float = 60.0) -> str:
        """What a guest prints for a script, asked over the network from where its DHCP server is."""

        async def ask() -> str:
            name = namespace_name(network_id)
            reader, writer = await open_connection_in(name, address, 80, timeout=timeout)
            body = script.encode()
            head = f"POST /cgi-bin/sh HTTP/1.0\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            try:
                async with asyncio.timeout(timeout):
                    answer = (await reader.read()).decode(errors="replace")
            finally:
                writer.close()
            return answer.partition("\n\n")[2] if "\r\n\r\n" not in answer else answer.split("\r\n\r\n", 1)[1]

        return asyncio.run(ask())

    def page(self, network_id: str, address: str, timeout: float = 20.0) -> str:
        """What http://address/ says.  Raises Unreachable."""

        async def ask() -> str:
            reader, writer = await open_connection_in(
                namespace_name(network_id), address, 80, timeout=timeout
            )
            writer.write(f"GET / HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
            try:
                async with asyncio.timeout(timeout):
                    answer = (await reader.read()).decode(errors="replace")
            except TimeoutError as error:
                raise Unreachable(f"{address} says nothing") from error
            finally:
                writer.close()
            return answer

        return asyncio.run(ask())

    # ---- what is on the host ----

    def remains(self) -> dict[str, list[str]]:
        """Everything that guests and networks have on this host: empty when nothing is left."""
        bridge = lines("ovs-vsctl", "--timeout=10", "list-ports", self.bridge)
        links = [line.split(": ")[1] for line in lines("ip", "-o", "link")]
        taps = [link for link in links if link.startswith("tap")]
        files = [path.name for path in (self.state / "instances").iterdir() if path.name[:1] != "_"]
        found = {
            "domains": [name for name in domains() if name not in (self._others or [])],
            "switch ports": bridge,
            "taps": taps,
            "instance files": files,
            "namespaces": lines("ip", "netns"),
            "dnsmasq": running("dnsmasq"),
            "qemu": running("qemu-system"),
        }
        return {name: things for name, things in found.items() if things}


def lines(*command: str) -> list[str]:
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def domains() -> list[str]:
    """All that libvirt has, also those that are off."""
    return lines("virsh", "-q", "-c", "qemu:///system", "list", "--all", "--name")


def running(program: str) -> list[str]:
    """The processes of this sandbox whose program is called so."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                name = (path / "cmdline").read_bytes().split(b"\0")[0].decode()
                if os.path.basename(name).startswith(program):
                    found.append(path.name)
    return found
