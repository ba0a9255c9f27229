"""Finding a domain by its uuid."""

from __future__ import annotations

from typing import Any


def find(libvirt: Any, link: Any, uuid: str) -> Any:
    """The domain, None if there is none.  Raises libvirt.libvirtError for anything else."""
    try:
        return link.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
