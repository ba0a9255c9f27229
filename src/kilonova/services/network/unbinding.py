"""Ports that keep their server when it leaves its host and goes to no other: it is shelved away."""

from __future__ import annotations

from typing import Any

from kilonova.db import network_ports as ports
from kilonova.services.network.work import Work

NOWHERE: dict[str, Any] = {"host": "", "vif_type": "unbound", "vif_details": {}, "status": "DOWN"}


def unbind(work: Work, instance_uuid: str) -> None:
    """Take all ports of a server from their host, so that nothing is wired for them; they stay its own."""
    for port in ports.of_device(work.tx, instance_uuid):
        if port.host:
            ports.update_port(work.tx, port.id, work.now, NOWHERE)
            work.ports.add(port.id)
