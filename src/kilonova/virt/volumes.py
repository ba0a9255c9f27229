"""Volumes as every hypervisor driver sees them: files that a controller names and others keep."""

from __future__ import annotations

from kilonova.errors import HostFault
from kilonova.model.volume import Attachment, Connection


def connection_of(volume: Attachment) -> Connection:
    """How this host gets at the volume.  Raises HostFault if it has not been told."""
    if volume.connection is None:
        raise HostFault(f"Volume {volume.volume_id} is not connected to this host: connect it first.")
    return volume.connection


def out_of_reach(volume: Attachment, why: str) -> HostFault:
    """What to raise for a volume that this host cannot use where it is said to be."""
    return HostFault(
        f"Volume {volume.volume_id} cannot be had on this host: {why}. "
        "Its directory has to be shared with the host that has it."
    )
