"""Where the members of a group are, and what is decided about the next one."""

from __future__ import annotations

import pytest

from kilonova.clock import SystemClock
from kilonova.db import placement_report, server_groups
from kilonova.db.engine import Database
from kilonova.db.server_groups import MOST, ServerGroup
from kilonova.errors import NotFound
from kilonova.model.host import Inventory, ProviderReport
from kilonova.services.placement.builtin import BuiltinPlacement


async def made(db: Database, policy: str, most: int | None = None) -> ServerGroup:
    group = ServerGroup(
        id=0,
        uuid="g",
        project_id="p",
        user_id="u",
        name="g",
        policy=policy,
        rules={} if most is None else {MOST: most},
        created_at=1,
    )
    made = await db.write(lambda tx: server_groups.create(tx, group, limit=-1, user_limit=None))
    await db.write(lambda tx: server_groups.add_members(tx, "g", ["a", "b", "c", "d"], "u", -1))
    return made


@pytest.fixture
async def placement(db: Database) -> BuiltinPlacement:
    """Two hosts, the first with a device below it, and a disk that both share."""
    gives = {"VCPU": Inventory(total=9)}
    for one in (
        ProviderReport(uuid="h1", name="h1", inventories=gives),
        ProviderReport(uuid="h2", name="h2", inventories=gives),
        ProviderReport(uuid="gpu", name="gpu", parent="h1", inventories={"VGPU": Inventory(total=9)}),
        ProviderReport(
            uuid="pool",
            name="pool",
            inventories={"DISK_GB": Inventory(total=99)},
            traits=("MISC_SHARES_VIA_AGGREGATE",),
        ),
    ):
        await db.write(lambda tx, one=one: placement_report.report(tx, one))
    return BuiltinPlacement(db, SystemClock())


async def test_where_members_are(db: Database, placement: BuiltinPlacement) -> None:
    group = await made(db, "affinity")
    await placement.claim("a", {"h1": {"VCPU": 1}, "gpu": {"VGPU": 1}, "pool": {"DISK_GB": 1}}, "p", "u")
    await placement.claim("b", {"h1": {"VCPU": 1}}, "p", "u")
    await placement.claim("c", {"h2": {"VCPU": 1}, "pool": {"DISK_GB": 1}}, "p", "u")
    await placement.claim("stranger", {"h2": {"VCPU": 1}}, "p", "u")
    # A shared disk is no host, and a server with a device below its host is one server.
    for but, expected in (("x", {"h1": 2, "h2": 1}), ("a", {"h1": 1, "h2": 1}), ("c", {"h1": 2})):
        found = await db.read(lambda tx, but=but: server_groups.hosts_of_members(tx, group.id, but=but))
        assert found == expected
    await placement.release("c")
    assert await db.read(lambda tx: server_groups.hosts_of_members(tx, group.id, but="")) == {"h1": 2}


@pytest.mark.parametrize(
    ("policy", "most", "answers"),
    [
        ("affinity", None, [None, "the other servers of the group g are not there"]),
        ("anti-affinity", None, ["it has 2 of the servers of the group g, 1 may be on one host", None]),
        ("anti-affinity", 2, ["it has 2 of the servers of the group g, 2 may be on one host", None]),
        ("anti-affinity", 3, [None, None]),
        ("soft-affinity", None, [None, None]),
        ("soft-anti-affinity", None, [None, None]),
    ],
)
@pytest.mark.capability("MG-BLD-7")
async def test_what_a_policy_says(
    db: Database, placement: BuiltinPlacement, policy: str, most: int | None, answers: list[str | None]
) -> None:
    await made(db, policy, most)

    async def asked(host: str, server: str = "d") -> str | None:
        return await db.write(lambda tx: server_groups.violation(tx, "g", server, host))

    assert [await asked(host) for host in ("h1", "h2")] == [None, None]  # nobody is anywhere
    for server in ("a", "b"):
        await placement.claim(server, {"h1": {"VCPU": 1}, "pool": {"DISK_GB": 1}}, "p", "u")
    assert [await asked(host) for host in ("h1", "h2")] == answers
    await db.write(lambda tx: server_groups.remove(tx, "g"))
    assert [await asked(host) for host in ("h1", "h2")] == [None, None]


async def test_a_member_is_not_in_its_own_way(db: Database, placement: BuiltinPlacement) -> None:
    await made(db, "anti-affinity")
    await placement.claim("a", {"h1": {"VCPU": 1}}, "p", "u")
    assert await db.write(lambda tx: server_groups.violation(tx, "g", "a", "h1")) is None
    assert await db.write(lambda tx: server_groups.violation(tx, "g", "b", "h1")) is not None


async def test_groups_that_are_not_there(db: Database) -> None:
    for verb in (
        lambda tx: server_groups.show(tx, "g"),
        lambda tx: server_groups.remove(tx, "g"),
        lambda tx: server_groups.add_members(tx, "g", ["a"], "u", -1),
    ):
        with pytest.raises(NotFound, match="Instance group g could not be found"):
            await db.write(verb)
    assert await db.read(lambda tx: server_groups.find(tx, "g")) is None
