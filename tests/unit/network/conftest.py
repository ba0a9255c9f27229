"""A network service on each kind of database, and the words to ask it in."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kilonova.clock import SystemClock
from kilonova.db.engine import Database
from kilonova.model.context import RequestContext
from kilonova.model.port import RequestedNetwork, Vif
from kilonova.services.network.auto import network_values, subnet_values
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.networks import create_network
from kilonova.services.network.port import PortRequest
from kilonova.services.network.subnets import create_subnet

ADMIN = RequestContext(
    request_id="req-a", user_id="root", project_id="admins", roles=frozenset({"admin", "member"})
)
ALICE = RequestContext(request_id="req-1", user_id="alice", project_id="alpha", roles=frozenset({"member"}))
BOB = RequestContext(request_id="req-2", user_id="bob", project_id="beta", roles=frozenset({"member"}))


class OneCell:
    """All that a desk needs to tell of guests: a cloud whose servers are in one database."""

    cells = None

    def __init__(self, db: Database) -> None:
        self.db = self.top = db

    async def of_server(self, uuid: str) -> OneCell:
        return self


class Cloud:
    """The service, with what it told compute and its subscribers."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.events: list[tuple[str, str, str, str]] = []
        self.changes: list[tuple[str, str]] = []
        self.service = BuiltinNetwork(db, SystemClock(), lambda: str(uuid.uuid4()), on_event=self._heard)

    async def _heard(self, instance: str, name: str, tag: str, status: str) -> None:
        self.events.append((instance, name, tag, status))

    async def network(
        self, context: RequestContext = ALICE, cidr: str | None = "10.0.0.0/24", **more: Any
    ) -> str:
        """A network with one subnet, or none; its id."""
        subnet = more.pop("subnet", {})
        made = await self.service.write(
            lambda work: create_network(work, context, network_values(more.pop("name", "net"), **more))
        )
        if cidr is not None:
            await self.subnet(made.id, cidr, context, **subnet)
        return made.id

    async def subnet(self, network_id: str, cidr: str, context: RequestContext = ALICE, **more: Any) -> str:
        values = subnet_values(network_id, "sub", cidr, **more)
        return (await self.service.write(lambda work: create_subnet(work, context, dict(values)))).id

    async def boot(
        self,
        instance: str,
        *networks: str | RequestedNetwork,
        project: str = "alpha",
        host: str = "one",
        **more: Any,
    ) -> tuple[Vif, ...]:
        """Ports for a server on these networks; on the one that there is, if none is named."""
        wanted = tuple(
            RequestedNetwork(network_id=each) if isinstance(each, str) else each for each in networks
        )
        request = PortRequest(
            instance_uuid=instance,
            project_id=project,
            hostname=f"host-{instance}",
            networks=wanted or None,
            **more,
        )
        return await self.service.allocate(request, host, {"datapath_type": "netdev"})


@pytest.fixture
async def cloud(db: Database) -> AsyncIterator[Cloud]:
    made = Cloud(db)
    yield made
    await made.service.close()


def port_values(network_id: str, **more: Any) -> dict[str, Any]:
    """What a user who asks for a port and nothing special gives to ``create_port``."""
    return {
        "network_id": network_id,
        "name": "mine",
        "description": "",
        "admin_state_up": True,
        "mac_address": None,
        "fixed_ips": None,
        "security_groups": None,
        "device_id": "",
        "device_owner": "",
        "port_security_enabled": None,
        "allowed_pairs": (),
        "host": "",
        "profile": {},
        "vnic_type": "normal",
        **more,
    }
