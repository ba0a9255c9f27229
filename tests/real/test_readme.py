"""The demo, and the README's tour with the ``openstack`` command, line by line as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real.real_cloud import ROOT, lines, running, wait_until

pytestmark = pytest.mark.real

BIN = Path(sys.executable).parent
STATE = Path("/var/lib/kilonova/demo")  # the sandbox has its own


def kilonova(*words: str, timeout: float = 600) -> str:
    done = subprocess.run(
        [BIN / "kilonova", *words], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tour() -> list[str]:
    """The commands of the README's five minutes, and what comes after them."""
    text = (ROOT / "README.md").read_text().split("## Five minutes", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_the_demo_and_the_tour_of_the_readme(tmp_path: Path) -> None:
    image = tmp_path / "kn-guest.qcow2"
    subprocess.run([ROOT / "tools/guest-image/build.sh", image], check=True, capture_output=True)
    said = kilonova("demo", "--image", str(image))
    for part in ("demo-1 is ACTIVE, address 10.20.0.", " ready", "/ says: kn-guest", "openstack server list"):
        assert part in said, said
    again = kilonova("demo", "--image", str(image))
    assert "the cloud runs already" in again and "demo-2 is ACTIVE" in again

    script = "set -ex\n" + "\n".join(
        line.replace("source .venv/bin/activate", f"source {BIN}/activate") for line in tour()
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "demo-1" in done.stdout and "first" in done.stdout

    said = kilonova("demo", "--stop")
    assert "demo-1 is off" in said and "the cloud is stopped" in said
    wait_until(lambda: not running("qemu-system"), 60, "guests still run")
    assert lines("ip", "netns") == []
    assert running("dnsmasq") == []
    assert lines("ovs-vsctl", "list-ports", "br-int") == []
