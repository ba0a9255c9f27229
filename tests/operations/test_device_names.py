"""Names of disks: those that a server's own disks have are not given to volumes."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.errors import Conflict, Forbidden, Invalid
from kilonova.model.flavor import Flavor
from kilonova.model.instance import ImageMeta, Instance
from kilonova.model.volume import Attachment
from kilonova.operations.device_names import choose, letter_of, named


def has(device: str | None, number: int = 0) -> Attachment:
    return Attachment(id=f"{device}{number}", volume_id="v", attachment_id="a", device=device)


def server(*devices: str | None, config_drive: bool = False, **image: Any) -> Instance:
    gib = {name: image.pop(name, 0) for name in ("ephemeral_gb", "swap_mb")}
    root = image.pop("root_gb", 1)
    return Instance(
        uuid="s",
        project_id="p",
        user_id="u",
        display_name="s",
        vm_state="active",
        flavor=Flavor(id=1, flavorid="1", name="f", vcpus=1, memory_mb=1, root_gb=root, **gib),
        image=ImageMeta(
            id="i",
            disk_format=image.pop("disk_format", "qcow2"),
            properties={f"hw_{bus}": value for bus, value in image.items()},
        ),
        config_drive=config_drive,
        volumes=tuple(has(device, number) for number, device in enumerate(devices)),
    )


@pytest.mark.parametrize(
    ("instance", "device"),
    [
        (server(), "/dev/vdb"),
        (server("/dev/vdb"), "/dev/vdc"),
        (server("/dev/vdc"), "/dev/vdb"),
        (server(None), "/dev/vdb"),
        (server(ephemeral_gb=1), "/dev/vdc"),
        (server(ephemeral_gb=1, swap_mb=1), "/dev/vdd"),
        (server(config_drive=True), "/dev/vdb"),  # is on another bus
        (server(config_drive=True, cdrom_bus="virtio"), "/dev/vdc"),
        (server(config_drive=True, disk_bus="scsi"), "/dev/sdc"),
        (server(disk_bus="sata"), "/dev/sdb"),
        (server(disk_bus="ide"), "/dev/hdb"),
        (server(disk_format="iso"), "/dev/vdb"),
        (server(disk_format="iso", root_gb=0), "/dev/vda"),
        (server(disk_format="iso", disk_bus="scsi"), "/dev/sdc"),
    ],
)
def test_the_next_that_is_free(instance: Instance, device: str) -> None:
    assert choose(instance, None, -1) == device


@pytest.mark.parametrize(
    ("wish", "letter"), [("/dev/vdb", "b"), ("/dev/sdz", "z"), ("/dev/xvdc2", "c"), ("/dev/b", "b")]
)
def test_wishes(wish: str, letter: str) -> None:
    assert letter_of(wish) == letter


@pytest.mark.parametrize("wish", ["", "vdb", "/dev/", "/dev/sr0/x", "/dev/vdab", "/dev/VDB"])
def test_what_is_no_name(wish: str) -> None:
    with pytest.raises(Invalid, match="/dev/vdb"):
        letter_of(wish)


def test_what_is_taken_and_too_many() -> None:
    with pytest.raises(Conflict):
        choose(server(), "/dev/vda", -1)
    with pytest.raises(Conflict):
        choose(server("/dev/vdb"), "/dev/sdb", -1)
    with pytest.raises(Forbidden):
        choose(server("/dev/vdb"), None, 2)
    assert choose(server("/dev/vdb"), None, 3) == "/dev/vdc"


def test_all_that_have_none_get_one() -> None:
    volumes = named(server(None, "/dev/vdc", None))
    assert [each.device for each in volumes] == ["/dev/vdb", "/dev/vdc", "/dev/vdd"]
