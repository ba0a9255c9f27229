"""A shelf of servers, no two alike, to list them.  Nothing may change it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from kilonova.api.app import app
from kilonova.api.policy import Policy
from kilonova.clock import SECOND, SystemClock, iso_z
from kilonova.db import flavors, instances
from kilonova.model.instance import Fault
from kilonova.model.port import FixedIp, Vif
from kilonova.operations.cloud import Cloud
from tests.api.compute.asgi import Api, Tokens
from tests.api.compute.conftest import ADMIN_PROJECT, PROJECT
from tests.api.compute.parts import NETWORK, server, small_cloud
from tests.conftest import opened

OTHER = "0ther0000000000000000000000000000"
IMAGE2 = "66666666-6666-4666-8666-666666666666"
T0 = 1_700_000_000 * SECOND


def at(second: int) -> str:
    return iso_z(T0 + second * SECOND)


def vif(address: str, version: int = 4) -> Vif:
    ip = FixedIp(subnet_id=NETWORK, address=address, version=version)
    return Vif(
        port_id=NETWORK, mac="fa:16:3e:00:00:09", network_id=NETWORK, network_name="n", fixed_ips=(ip,)
    )


FAULT = Fault(code=500, message="it broke", created=T0, details="how it broke")

# name -> what is special about the server; second n of the epoch is when number n was made
SHELF: dict[str, dict[str, Any]] = {
    "web-1": {
        "tags": ("blue", "prod"),
        "key_name": "k1",
        "config_drive": True,
        "power_state": 1,
        "fault": FAULT,
    },
    "web-2": {"tags": ("blue",), "vifs": (vif("10.0.0.6"),), "locked": "owner", "image": {"id": IMAGE2}},
    "db-1": {"tags": ("prod",), "vm_state": "stopped", "power_state": 4, "vifs": (vif("fd00::77", 6),)},
    "db-2": {
        "vm_state": "error",
        "host": None,
        "node": None,
        "launched_at": None,
        "image": None,
        "fault": FAULT,
    },
    "broken": {"vm_state": "active", "task_state": "rebooting", "reservation_id": "r-abcdefgh"},
    "moving": {"task_state": "resize_migrating", "availability_zone": "east", "hostname": "mover"},
    "Mixed Case": {
        "vm_state": "paused",
        "power_state": 3,
        "display_description": "a (rare) one",
        "progress": 40,
    },
    "new": {"vm_state": "building", "task_state": "spawning", "user_id": "somebody", "vifs": ()},
}
NAMES = list(SHELF)
GONE = "deleted one"
THEIRS = "their own"


@pytest_asyncio.fixture(
    name="shelf",
    scope="module",
    loop_scope="module",
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)],
)
async def _shelf(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Api]:
    path = tmp_path_factory.mktemp("shelf")
    async with opened(request, request.param, path, SystemClock(), "shelf") as db:
        cloud = await small_cloud(db, path)
        await fill(cloud)
        tokens = Tokens(PROJECT, ADMIN_PROJECT, "user1", "admin1")
        yield Api(app(cloud, tokens, Policy(path / "policy.yaml")))


async def fill(cloud: Cloud) -> None:
    c1 = await cloud.db.read(lambda tx: flavors.show(tx, "c1"))

    def times(number: int) -> dict[str, int]:
        moment = T0 + number * SECOND
        return {"created_at": moment, "updated_at": moment, "launched_at": moment + SECOND // 2}

    for number, (name, values) in enumerate(SHELF.items()):
        extra = {"flavor": c1} if name == "web-1" else {}
        await server(cloud, PROJECT, **{**times(number), "display_name": name, **extra, **values})
    gone = await server(cloud, PROJECT, **times(20), display_name=GONE)
    await cloud.db.write(lambda tx: instances.mark_deleted(tx, gone.uuid, T0 + 21 * SECOND))
    await server(cloud, OTHER, **times(30), display_name=THEIRS)
    await server(cloud, ADMIN_PROJECT, **times(40), display_name="the administrators'")


shelf = _shelf


async def refused(shelf: Api, query: str, v: int = 104, who: str = "admin", status: int = 400) -> str:
    reasons = set()
    for path in ("/servers", "/servers/detail"):
        reply = await shelf("GET", f"{path}?{query}", v=v, who=who)
        assert reply.status == status, (query, reply.content)
        reasons.add(reply.fault.replace(":detail:", ":index:"))
    (reason,) = reasons
    return reason
