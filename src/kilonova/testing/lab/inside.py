"""The first process of a host of the lab: gives it files of its own, then buries whoever ends.

    python -m kilonova.testing.lab.inside NAME FILES HOSTS [SHARED]

runs as process 1 of fresh namespaces.  ``FILES`` is the root of what the host writes: each directory of
`PRIVATE` is one of these.  ``HOSTS`` is its /etc/hosts.  ``SHARED`` is seen at `SHARE`, by every host that is
given it.  It writes "ready" when that is done, and lives until it is killed: the host ends with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

PRIVATE = (
    "/run",
    "/etc/libvirt",
    "/var/lib/libvirt",
    "/var/cache/libvirt",
    "/var/log/libvirt",
    "/etc/openvswitch",
    "/var/lib/openvswitch",
    "/var/log/openvswitch",
    "/var/lib/kilonova",
)
STATE = Path("/var/lib/kilonova/agent")  # of the agent
SHARE = STATE / "instances"


def main(name: str, files: Path, hosts: Path, shared: Path | None = None) -> None:
    if os.path.ismount("/run"):  # beneath it are things of others, which libvirt would go and look for
        subprocess.run(["umount", "--recursive", "--lazy", "/run"], check=True)
    for directory in PRIVATE:
        _bind(files / directory[1:], Path(directory))
    _mount("-t", "sysfs", "sysfs", "/sys")  # the one that came along shows the links of another namespace
    for directory in ("/run/lock", "/run/libvirt", "/run/openvswitch"):
        Path(directory).mkdir(exist_ok=True)
    _mount("--bind", str(hosts), "/etc/hosts")
    boot_id = Path("/run/boot_id")  # else it is the machine's, and the same for ever
    boot_id.write_text(f"{uuid.uuid4()}\n")
    _mount("--bind", str(boot_id), "/proc/sys/kernel/random/boot_id")
    if shared is not None:
        SHARE.parent.mkdir(exist_ok=True)
        _bind(shared, SHARE)
    socket.sethostname(name)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    print("ready", flush=True)
    _bury()


def _bind(source: Path, target: Path) -> None:
    source.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    _mount("--bind", str(source), str(target))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _bury() -> None:
    """Guests, and whatever has lost its parent, are children of process 1."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        signal.sigwait([signal.SIGCHLD])


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:]))
