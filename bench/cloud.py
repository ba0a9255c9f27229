"""A fake cloud as a process of its own, and what it costs by the kernel's account."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.http import Client

TICK = os.sysconf("SC_CLK_TCK")
OFFSET = 20_000


class Cloud:
    """``kilonova up --driver fake`` on a directory."""

    def __init__(self, state_dir: Path, config: str = "") -> None:
        self.state_dir = state_dir
        state_dir.mkdir(parents=True, exist_ok=True)
        self.config = state_dir / "bench.conf"
        self.config.write_text("[quota]\ninstances = -1\ncores = -1\nram = -1\n" + config)
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> float:
        """Seconds until the line that says ready."""
        began = time.perf_counter()
        command = [sys.executable, "-m", "kilonova.cli", "up", "--driver", "fake", "--state-dir"]
        command += [str(self.state_dir), "--port-offset", str(OFFSET), "--config-file", str(self.config)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready"):
                return time.perf_counter() - began
        raise RuntimeError(f"the cloud did not start; see {self.state_dir}/kilonova.log")

    def cpu(self) -> float:
        """CPU seconds of the process so far, user and system."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self) -> float:
        """Resident MiB now."""
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("no VmRSS")

    def stop(self) -> float:
        """Seconds from SIGTERM to the end."""
        assert self.process is not None
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.perf_counter() - began

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)

    async def client(self, version: str = "2.96", cloud: str = "kilonova") -> Client:
        """A connection to the Compute API with a token."""
        auth = json.loads((self.state_dir / "clouds.yaml").read_text())["clouds"][cloud]["auth"]
        port = int(auth["auth_url"].rsplit(":", 1)[1].split("/")[0])
        login = Client("127.0.0.1", port, {})
        domain = {"name": "Default"}
        user = {"name": auth["username"], "password": auth["password"], "domain": domain}
        body: dict[str, Any] = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {"name": auth["project_name"], "domain": domain}},
            }
        }
        status, answer, headers = await login.request("POST", "/v3/auth/tokens", body)
        login.close()
        assert status == 201, answer
        self.token = headers["x-subject-token"]
        self.project = json.loads(answer)["token"]["project"]["id"]
        return self.another(version)

    def of_service(self, default_port: int) -> Client:
        """A connection to another service with the same token."""
        return Client("127.0.0.1", default_port + OFFSET, {"X-Auth-Token": self.token})

    def another(self, version: str = "2.96") -> Client:
        """One more connection with the same token."""
        return Client(
            "127.0.0.1",
            8774 + OFFSET,
            {"X-Auth-Token": self.token, "OpenStack-API-Version": f"compute {version}"},
        )
