"""A Linux guest that writes to each volume it gets: how often it was booted and how often it has written, ten
times a second.  What it finds on a volume at first it says on its console.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from kilonova.rpc.messages import GuestSpec
from tests.unit.virt.sources import Images, guest

BUILD = Path(__file__).parents[2] / "tools/guest-image/build.sh"
SERIAL = 20  # characters of a serial number that virtio lets a guest see
SECTOR = 512

# The pause is there so that a guest on a busy machine still has time to let go of a disk.
USER_DATA = b"""#!/bin/sh
volumes() {
    boots=$(cat /data/boots) count=0
    while usleep 100000; do
        count=$((count + 1))
        for place in /sys/block/vd?; do
            name=${place##*/} serial=$(cat $place/serial 2>/dev/null)
            [ -n "$serial" ] || continue
            if [ ! -e /run/$serial ]; then
                touch /run/$serial
                /kn/say "volume $name $serial holds '$(head -n 1 /dev/$name | tr -d '\\000')'"
            fi
            printf '%s %s\\n' $boots $count | dd of=/dev/$name conv=notrunc,fsync 2>/dev/null
        done
    done
}
volumes &
"""


def image(directory: Path) -> bytes:
    path = directory / "kn-guest.qcow2"
    subprocess.run([BUILD, path], check=True, capture_output=True)
    return path.read_bytes()


def writer(images: Images, data: bytes, **more: Any) -> GuestSpec:
    """``data`` is the image."""
    spec = guest(images.add(data, disk_format="qcow2"), flavor={"memory_mb": 96, "root_gb": 1}, **more)
    meta = {"uuid": spec.uuid, "name": spec.name, "hostname": "writer"}
    latest = "openstack/latest"
    drive = {f"{latest}/meta_data.json": json.dumps(meta).encode(), f"{latest}/user_data": USER_DATA}
    return guest(spec.image, uuid=spec.uuid, flavor=spec.flavor, config_drive=drive, **more)


def written(path: Path) -> tuple[int, int]:
    """(boots, times) that the guest has written last; (0, 0) for nothing."""
    with path.open("rb") as file:
        line = file.read(SECTOR).partition(b"\n")[0].strip(b"\0").decode()
    boots, count = (line or "0 0").split()[:2]
    return int(boots), int(count)
