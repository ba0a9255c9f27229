"""Real nats-servers, with the users that `kilonova host add` makes."""

from __future__ import annotations

from tests.unit.rpc.conftest import fast, link_to, own_bus, shared_bus

__all__ = ["fast", "link_to", "own_bus", "shared_bus"]
