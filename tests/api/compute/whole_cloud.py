"""The Compute API before a whole fake cloud in this process: what is asked for here really happens.

One cloud serves a module.  At its end everything is deleted, and nothing may be left: no port, no claim, no
guest, no open operation, and every counter says what it counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from kilonova.api.app import app
from kilonova.api.policy import Policy
from kilonova.app import EmbeddedCloud
from kilonova.db import quotas
from kilonova.db.engine import Statement
from kilonova.db.tables.compute import instances
from kilonova.db.tables.journal import actions
from kilonova.db.tables.network import ports
from kilonova.journal import attention
from kilonova.model.instance import Instance
from kilonova.model.port import Vif
from kilonova.services.image import api as image_api
from kilonova.services.network import api as network_api
from kilonova.testing.embedded import audits, embedded, fake_driver, holdings, server, settled
from kilonova.virt.fake.driver import FakeDriver
from tests.api.compute.asgi import Api, Reply, Tokens

PLENTY = {"instances": 500, "cores": 5000, "ram": 5_000_000}
FLAVOR = "42"
OF_COMPUTE = Statement(select(ports.c.id, ports.c.device_id).where(ports.c.device_owner.like("compute:%")))
SERVERS = Statement(select(func.count()).select_from(instances))
ACTIONS = Statement(select(func.count()).select_from(actions))
NOBODYS = "99999999-9999-4999-8999-999999999999"  # an id that nothing has


@dataclass(repr=False)
class Whole:
    cloud: EmbeddedCloud
    api: Api
    network: Api
    images: Api
    tokens: Tokens
    policy_file: Path

    @property
    def driver(self) -> FakeDriver:
        return fake_driver(self.cloud)

    @property
    def host(self) -> str:
        return self.cloud.settings.text("host") or self.driver._host

    @property
    def image(self) -> str:
        return self.cloud.example_image

    @property
    def project(self) -> str:
        assert self.cloud.accounts is not None
        return self.cloud.accounts.projects["demo"]

    def body(self, v: int = 104, hints: dict[str, Any] | None = None, **server: Any) -> dict[str, Any]:
        """A create body that is right, with ``server`` over its fields; None leaves a field out."""
        fields = {"name": "s", "imageRef": self.image, "flavorRef": FLAVOR}
        if v >= 37:
            fields["networks"] = "none"
        fields = {key: value for key, value in {**fields, **server}.items() if value is not None}
        return {"server": fields} | ({"os:scheduler_hints": hints} if hints is not None else {})

    async def create(
        self, v: int = 104, who: str = "member", hints: dict[str, Any] | None = None, **server: Any
    ) -> Reply:
        return await self.api("POST", "/servers", self.body(v, hints, **server), v=v, who=who)

    async def made(self, v: int = 104, who: str = "member", **server: Any) -> Instance:
        """The server once nothing is being done to it."""
        reply = await self.create(v, who, **server)
        assert reply.status == 202, reply.content
        return await self.settled(reply.json["server"]["id"])

    async def refused(self, status: int, v: int = 104, who: str = "member", **server: Any) -> str:
        """The message of a create that makes nothing."""
        before = await self.everything()
        reply = await self.create(v, who, **server)
        assert reply.status == status, reply.content
        assert await self.everything() == before
        return reply.fault

    async def everything(self) -> tuple[Any, ...]:
        """What a refused request must leave as it was: servers, operations, and the quota in use."""

        def read(tx: Any) -> tuple[Any, ...]:
            return (tx.scalar(SERVERS), tx.scalar(ACTIONS), sorted(tx.all(quotas.ALL_USAGES)))

        return await self.cloud.db.read(read)

    async def settled(self, uuid: str) -> Instance:
        return await settled(self.cloud, uuid, 60.0)

    async def shown(self, uuid: str, v: int = 104, who: str = "admin") -> dict[str, Any]:
        reply = await self.api("GET", f"/servers/{uuid}", v=v, who=who)
        assert reply.status == 200, reply.content
        found: dict[str, Any] = reply.json["server"]
        return found

    async def quiet(self) -> None:
        """Wait until nothing is being done to any server."""
        async with asyncio.timeout(60):
            while await self.cloud.db.read(attention.open_actions):
                await asyncio.sleep(0.005)

    @contextmanager
    def held(self, verb: str) -> Iterator[None]:
        """The hypervisor does not come back from this verb until the end of the block."""
        self.driver.faults.hold(verb)
        try:
            yield
        finally:
            self.driver.faults.release(verb)

    async def act(self, uuid: str, action: str, argument: Any = None, **how: Any) -> Reply:
        return await self.api("POST", f"/servers/{uuid}/action", {action: argument}, **how)

    async def gone(self, uuid: str, who: str = "admin") -> Instance:
        """Delete a server and wait until it is gone, with all that it had."""
        reply = await self.api("DELETE", f"/servers/{uuid}", who=who)
        assert reply.status == 204, reply.content
        instance = await self.settled(uuid)
        assert instance.vm_state == "deleted"
        assert (await holdings(self.cloud, uuid)).nothing
        return instance

    async def instance(self, uuid: str) -> Instance:
        return await server(self.cloud, uuid)

    async def vifs(self, uuid: str) -> tuple[Vif, ...]:
        return await self.cloud.network.vifs(uuid)

    async def new(self, kind: str, who: str = "member", **values: Any) -> dict[str, Any]:
        """Make something of the network service's: ``new("port", network_id=...)``."""
        reply = await self.network("POST", f"/{kind.replace('_', '-')}s", {kind: values}, who=who)
        assert reply.status == 201, reply.content
        made: dict[str, Any] = reply.json[kind]
        return made

    async def private(self) -> str:
        """The id of the network that every cloud has."""
        reply = await self.network("GET", "/networks?name=private")
        return str(reply.json["networks"][0]["id"])

    async def network_of(self, cidr: str | None, who: str = "member", **values: Any) -> str:
        """The id of a new network with one subnet, or with none."""
        made = await self.new("network", who, **values)
        if cidr is not None:
            version = 6 if ":" in cidr else 4
            await self.new("subnet", who, network_id=made["id"], cidr=cidr, ip_version=version)
        return str(made["id"])

    async def clear(self) -> None:
        """Delete all servers, and see that nothing is left of any."""
        reply = await self.api("GET", "/servers?all_tenants=1", who="admin")
        uuids = [each["id"] for each in reply.json["servers"]]
        for uuid in uuids:
            await self.api("DELETE", f"/servers/{uuid}", who="admin")
        for uuid in uuids:
            assert (await self.settled(uuid)).vm_state == "deleted"
        assert await audits(self.cloud) == []
        assert await self.cloud.db.read(attention.open_actions) == []
        assert await self.cloud.network.read(_ports) == []
        assert self.driver.guest_file.defined() == {}


def _ports(work: Any) -> list[Any]:
    """The ports that compute has made, or uses."""
    return sorted(work.tx.all(OF_COMPUTE))


@asynccontextmanager
async def whole_cloud(state_dir: Path, **options: dict[str, object]) -> AsyncIterator[Whole]:
    options.setdefault("quota", dict(PLENTY))
    async with embedded(state_dir / "state", **options) as cloud:
        accounts = cloud.accounts
        assert accounts is not None
        tokens = Tokens(
            accounts.projects["demo"],
            accounts.projects["admin"],
            accounts.users["demo"],
            accounts.users["admin"],
        )
        policy_file = state_dir / "policy.yaml"
        api = Api(app(cloud.cloud, tokens, Policy(policy_file)))
        network = Api(network_api.app(cloud.network, tokens, "http://cloud.example:9696"), base="/v2.0")
        images = Api(image_api.app(cloud.image, tokens, "http://cloud.example:9292"), base="/v2")
        whole = Whole(cloud, api, network, images, tokens, policy_file)
        yield whole
        async with asyncio.timeout(120):
            await whole.clear()
