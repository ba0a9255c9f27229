"""Names of a server's disks (``/dev/vdb``), which are given when a volume is attached."""

from __future__ import annotations

import re
from string import ascii_lowercase

from msgspec.structs import replace

from kilonova.errors import Conflict, Forbidden, Invalid
from kilonova.model.instance import Instance
from kilonova.model.volume import DISK_PREFIX, Attachment

_WISH = re.compile(r"/dev/x?[a-z]?d?([a-z]+)[0-9]*")


def letter_of(device: str) -> str:
    """``b`` of ``/dev/vdb``.  Raises Invalid for what is no name of a disk."""
    found = _WISH.fullmatch(device)
    if found is None or len(found[1]) > 1:
        raise Invalid(f"The supplied device path ({device}) is invalid: name one as /dev/vdb.")
    return found[1]


def _bus(instance: Instance, kind: str, default: str) -> str:
    properties = {} if instance.image is None else instance.image.properties
    return properties.get(f"hw_{kind}_bus") or default


def _own_disks(instance: Instance) -> int:
    """How many names its host gives to disks of its own, the first ones.

    A medium to boot from and a config drive have one too, unless they are on another bus.
    """
    flavor, image = instance.flavor, instance.image
    prefix = DISK_PREFIX.get(_bus(instance, "disk", "virtio"), "vd")
    from_medium = image is not None and image.disk_format == "iso"
    media = (from_medium + instance.config_drive) if _shares_names(instance, prefix) else 0
    root = 0 if from_medium and not flavor.root_gb else 1
    return root + media + bool(flavor.ephemeral_gb) + bool(flavor.swap_mb)


def _shares_names(instance: Instance, prefix: str) -> bool:
    """Whether a CD-ROM may be called like a disk: the bus that it is on by default is its host's to say."""
    if prefix == "vd":
        return _bus(instance, "cdrom", "") == "virtio"
    return True


def choose(instance: Instance, wish: str | None, most: int) -> str:
    """A name that no disk of the server has: the wished one, on the bus that its disks are on.

    ``most``: disks that a server may have, -1 for no limit.  Raises Invalid for a wish that is no name,
    Conflict for one that is taken, Forbidden when there are too many.
    """
    first = _own_disks(instance)
    letter = None if wish is None else letter_of(wish)
    if most >= 0 and first + len(instance.volumes) + 1 > most:
        raise Forbidden(f"Instance {instance.uuid} has the {most} disks that it may have: detach one first.")
    used = set(ascii_lowercase[:first]) | {each.device[-1] for each in instance.volumes if each.device}
    if letter in used:
        raise Conflict(f"The supplied device path ({wish}) is in use by instance {instance.uuid}.")
    letter = letter or next((each for each in ascii_lowercase if each not in used), None)
    if letter is None:
        raise Forbidden(f"There is no name left for another disk of instance {instance.uuid}.")
    return f"/dev/{DISK_PREFIX.get(_bus(instance, 'disk', 'virtio'), 'vd')}{letter}"


def named(instance: Instance) -> tuple[Attachment, ...]:
    """Its volumes, with a name for each that has none since it was on no host.  Raises as ``choose``."""
    for each in instance.volumes:
        if each.device is None:
            one = replace(each, device=choose(instance, None, -1))
            volumes = tuple(one if other.id == one.id else other for other in instance.volumes)
            instance = replace(instance, volumes=volumes)
    return instance.volumes
