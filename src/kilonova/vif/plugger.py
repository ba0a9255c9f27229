"""Connecting a guest's ports to the switch of its host."""

from __future__ import annotations

from typing import Protocol

from kilonova.model.port import Vif


class VifPlugger(Protocol):
    """Creates and removes switch ports.  Both methods converge when repeated."""

    async def plug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        """Create the port, isolated.  Raises HostFault."""

    async def unplug(self, vif: Vif, instance_uuid: str, instance_name: str) -> None:
        """Remove the port; one that is not there is no error.  Raises TryAgain."""
