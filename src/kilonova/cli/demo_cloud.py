"""The process of the demo's cloud: started in the background, found again, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from kilonova.cli.demo_client import DemoClient

READY = 60.0  # seconds that the cloud has to come up
SHUTDOWN = 180.0  # seconds that all guests together have to shut down

console = Console()


def _pid_of(state_dir: Path) -> int | None:
    """The pid of the demo's cloud, if that very process still runs."""
    file = state_dir / "demo.pid"
    try:
        pid, started = file.read_text().split()
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19] == started:
            return int(pid)
    except (OSError, ValueError):
        pass
    return None


def stop_cloud(state_dir: Path) -> None:
    """Shut the servers down, end the cloud, and take what it made off the host."""
    _end_process(state_dir)
    _leave_host(state_dir)


def _leave_host(state_dir: Path) -> None:
    command = [sys.executable, "-m", "kilonova.cli", "host", "cleanup", "--state-dir", str(state_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        console.print(f"[green]✓[/] {done.stdout.splitlines()[-1]}")
    else:  # without Open vSwitch nothing of ours works on this host
        console.print(f"[yellow]![/] {escape(done.stderr.strip())}")


def _end_process(state_dir: Path) -> None:
    pid = _pid_of(state_dir)
    if pid is None:
        console.print("The demo's cloud does not run.")
        return
    _shut_servers_down(DemoClient(state_dir / "clouds.yaml", "kilonova"))
    os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        if _pid_of(state_dir) is None:
            console.print(f"[green]✓[/] the cloud is stopped; its state stays in {state_dir}")
            return
        time.sleep(0.1)
    raise click.ClickException(f"The cloud (pid {pid}) did not end within 10 seconds.")


def _shut_servers_down(client: DemoClient) -> None:
    """Press the power button of all running servers and wait until they are off."""
    running = client.call("compute", "GET", "/servers?status=ACTIVE")["servers"]
    for server in running:
        client.call("compute", "POST", f"/servers/{server['id']}/action", {"os-stop": None})
    until = time.monotonic() + SHUTDOWN
    for server in running:
        with console.status(f"shutting down {server['name']} ..."):
            while client.call("compute", "GET", f"/servers/{server['id']}")["server"]["status"] == "ACTIVE":
                if time.monotonic() > until:
                    raise click.ClickException(f"{server['name']} did not stop within {SHUTDOWN:.0f} s.")
                time.sleep(0.1)
        console.print(f"[green]✓[/] {server['name']} is off")


def ensure_cloud(state_dir: Path, driver: str, port_offset: int) -> None:
    if _pid_of(state_dir) is not None:
        console.print("[green]✓[/] the cloud runs already")
        return
    state_dir.mkdir(parents=True, exist_ok=True)
    output = state_dir / "demo.out"
    command = [sys.executable, "-m", "kilonova.cli", "up", "--driver", driver]
    command += ["--state-dir", str(state_dir), "--port-offset", str(port_offset)]
    with output.open("w") as file, console.status("starting the cloud ...") as status:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True
        )
        started = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
        (state_dir / "demo.pid").write_text(f"{process.pid} {started}\n")
        until = time.monotonic() + READY
        while time.monotonic() < until:
            lines = output.read_text().splitlines()
            if any(line.startswith("ready") for line in lines):
                break
            if process.poll() is not None:
                raise click.ClickException("The cloud did not start:\n" + "\n".join(lines[-10:]))
            status.update(f"starting the cloud: {lines[-1] if lines else '...'}")
            time.sleep(0.1)
        else:
            raise click.ClickException(f"The cloud was not ready within {READY:.0f} s; see {output}.")
    console.print("[green]✓[/] the cloud is up")
