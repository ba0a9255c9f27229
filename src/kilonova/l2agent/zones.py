"""Zones of connection tracking: one a port, written down on the port, so that restarts keep connections."""

from __future__ import annotations

from collections.abc import Set


class Zones:
    """Numbers from 1 to 65535, each held by one port."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._holder: dict[int, str] = {}

    def of(self, port_id: str, recorded: int | None, taken: Set[int]) -> tuple[int, bool]:
        """The port's zone, and whether it is a new one, which may hold connections of a former holder.

        ``recorded`` is what is written on the port, ``taken`` what is written on any.
        """
        if port_id in self._of:
            return self._of[port_id], False
        if recorded is not None and recorded not in self._holder:
            zone, is_new = recorded, False
        else:
            held = self._holder.keys() | taken
            free = (number for number in range(1, 65536) if number not in held)
            zone, is_new = next(free), True
        self._of[port_id] = zone
        self._holder[zone] = port_id
        return zone, is_new

    def release(self, port_id: str) -> None:
        zone = self._of.pop(port_id, None)
        if zone is not None:
            del self._holder[zone]
