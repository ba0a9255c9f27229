"""What libvirt's errors mean to the caller."""

from __future__ import annotations

import re
from typing import Any

from kilonova.errors import HostFault, KilonovaError, TryAgain

_STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z ")
_LONGEST = 1000


def words(error: Any) -> str:
    """What libvirt, or QEMU through it, says: without QEMU's time stamps, on one line."""
    text = error.get_error_message() or str(error)
    text = " ".join(_STAMP.sub("", text).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def translated(libvirt: Any, error: Any, *, alive: bool) -> KilonovaError:
    """The error to raise for one of libvirt's; ``alive`` says whether the connection still is."""
    broken = error.get_error_domain() in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)
    if not alive or broken:  # a connection in the middle of breaking may still say that it lives
        return TryAgain(f"libvirtd does not answer for the moment: {words(error)}")
    if error.get_error_code() == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        return TryAgain(f"libvirt is busy with this guest: {words(error)}")
    return HostFault(f"libvirt: {words(error)}")
