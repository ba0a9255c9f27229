"""The libvirt library, loaded by the first who needs it: a cloud of fake guests never does.

The event loop of libvirt belongs to the process: it is registered before the first connection is opened, and
one daemon thread runs it for ever.
"""

from __future__ import annotations

import threading
from typing import Any

import structlog

from kilonova.errors import Failed

log = structlog.get_logger("kilonova.virt")

_lock = threading.Lock()
_loaded: Any = None


def load() -> Any:
    """The module ``libvirt``, with its events running.  Raises Failed if it is not installed."""
    global _loaded
    with _lock:
        if _loaded is None:
            try:
                import libvirt
            except ImportError as error:
                raise Failed(
                    f"libvirt-python is not installed: {error}. Run `make host`, or use --driver fake."
                ) from None
            libvirt.registerErrorHandler(_quiet, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=_run_events, args=(libvirt,), name="libvirt-events", daemon=True).start()
            _loaded = libvirt
        return _loaded


def _quiet(context: object, error: object) -> None:
    """libvirt prints each error by default; ours are raised."""


def _run_events(libvirt: Any) -> None:
    pause = threading.Event()
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except Exception:
            log.exception("an event of libvirt was lost")
            pause.wait(0.1)  # or a broken poll would take a whole core
