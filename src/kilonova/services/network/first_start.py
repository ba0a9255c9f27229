"""What a new cloud has: one network that every project can use."""

from __future__ import annotations

from kilonova.db import network_networks as networks
from kilonova.db.network_records import Network
from kilonova.model.context import RequestContext
from kilonova.services.network.auto import network_values, subnet_values
from kilonova.services.network.builtin import BuiltinNetwork
from kilonova.services.network.networks import create_network
from kilonova.services.network.subnets import create_subnet
from kilonova.services.network.work import Work


async def first_start(
    network: BuiltinNetwork,
    project_id: str,
    *,
    name: str = "private",
    subnet_name: str = "private-subnet",
    cidr: str = "10.11.0.0/16",
    dns: tuple[str, ...] = (),
) -> str | None:
    """Make the shared network of a new cloud, owned by ``project_id`` (the administrators' project).

    Only when there is no network at all: one that an operator deleted does not come back while there are
    others.  Gives the id of what was made, or None.
    """

    def make(work: Work) -> str | None:
        if networks.count_networks(work.tx):
            return None
        return _make(work, project_id).id

    def _make(work: Work, owner: str) -> Network:
        context = RequestContext(request_id="", user_id="", project_id=owner, roles=frozenset({"admin"}))
        made = create_network(work, context, network_values(name, shared=True))
        create_subnet(work, context, subnet_values(made.id, subnet_name, cidr, dns_nameservers=dns))
        return made

    return await network.write(make)
