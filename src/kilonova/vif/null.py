"""Ports of hosts that have no switch: the fake driver's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kilonova.model.port import Vif


class NullPlugger:
    """Implements plugger.VifPlugger; says at once that a port is wired, as an agent would later."""

    def __init__(self, on_plugged: Callable[[Vif], Awaitable[None]]) -> None:
        self._on_plugged = on_plugged
        self._plugged: dict[str, str] = {}

    async def plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        self._plugged[vif.port_id] = instance_uuid
        await self._on_plugged(vif)

    async def unplug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        self._plugged.pop(vif.port_id, None)

    def plugged(self) -> dict[str, str]:
        """The ports that are plugged now, each with its server's uuid."""
        return dict(self._plugged)
