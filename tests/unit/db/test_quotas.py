"""Quotas: no race overruns one, a refusal takes nothing, and the counts are what the servers add up to."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from kilonova.db import instances, quotas
from kilonova.db.engine import Database, Tx
from kilonova.db.quotas import Limits
from kilonova.errors import OverQuota
from kilonova.model.flavor import Flavor
from kilonova.model.instance import Instance

DEFAULTS = {"instances": 10, "cores": 20, "ram": 51200, "key_pairs": 100}
ONE = {"instances": 1, "cores": 1, "ram": 512}


async def limits(db: Database, project: str = "p", user: str | None = "u") -> Limits:
    return await db.read(lambda tx: quotas.effective_limits(tx, project, user, DEFAULTS))


async def reserve(db: Database, some: Limits, *, user: str = "u", **amounts: int) -> None:
    wanted = {**ONE, **amounts}
    await db.write(lambda tx: quotas.reserve(tx, "p", user, some, **wanted))


async def used(db: Database, user: str | None = None) -> dict[str, int]:
    return await db.read(lambda tx: quotas.usage(tx, "p", user))


async def test_the_nearest_limit_holds(db: Database) -> None:
    assert await limits(db) == DEFAULTS
    await db.write(lambda tx: quotas.set_limits(tx, "class", "default", {"cores": 30, "ram": 1}))
    await db.write(lambda tx: quotas.set_limits(tx, "project", "p", {"cores": 40}))
    await db.write(lambda tx: quotas.set_limits(tx, "user", "p/u", {"cores": 5}))
    await db.write(lambda tx: quotas.set_limits(tx, "user", "p/u", {"cores": 6}))
    found = await limits(db)
    assert found == {"instances": 10, "cores": 6, "ram": 1, "key_pairs": 100}
    assert found.project["cores"] == 40 and found.of_user == {"cores": 6}
    assert await limits(db, user=None) == {**DEFAULTS, "cores": 40, "ram": 1}
    assert await limits(db, project="q") == {**DEFAULTS, "cores": 30, "ram": 1}
    assert await db.read(lambda tx: quotas.limits_of(tx, "project", "p")) == {"cores": 40}


async def test_limits_are_dropped_with_the_users(db: Database) -> None:
    for scope, name in (
        ("project", "p"),
        ("user", "p/u"),
        ("user", "p/v"),
        ("user", "pq/u"),
        ("project", "pq"),
    ):
        await db.write(lambda tx, s=scope, n=name: quotas.set_limits(tx, s, n, {"cores": 1}))  # type: ignore[misc]
    await db.write(lambda tx: quotas.drop_limits(tx, "p", "u"))
    assert await db.read(lambda tx: quotas.limits_of(tx, "user", "p/u")) == {}
    assert await db.read(lambda tx: quotas.limits_of(tx, "user", "p/v")) == {"cores": 1}
    await db.write(lambda tx: quotas.drop_limits(tx, "p"))
    assert await db.read(lambda tx: quotas.limits_of(tx, "user", "p/v")) == {}
    assert await db.read(lambda tx: quotas.limits_of(tx, "project", "p")) == {}
    assert await db.read(lambda tx: quotas.limits_of(tx, "user", "pq/u")) == {"cores": 1}


async def test_a_reservation_counts_for_the_user_and_the_project(db: Database) -> None:
    some = await limits(db)
    await reserve(db, some)
    await reserve(db, some, user="v", instances=2, cores=4, ram=1024)
    assert await used(db) == {"instances": 3, "cores": 5, "ram": 1536}
    assert await used(db, "u") == ONE
    await db.write(lambda tx: quotas.give_back(tx, "p", "v", instances=2, cores=4, ram=1024))
    assert await used(db) == ONE
    assert await used(db, "v") == {"instances": 0, "cores": 0, "ram": 0}


async def test_the_second_reservation_is_one_statement(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    some = await limits(db)
    await reserve(db, some)
    statements: list[Any] = []
    execute = Tx._execute

    def counted(self: Tx, statement: Any, values: dict[str, Any]) -> None:
        statements.append(statement)
        execute(self, statement, values)

    monkeypatch.setattr(Tx, "_execute", counted)
    await reserve(db, some)
    assert statements == [quotas.RESERVE]


@pytest.mark.capability("UT-10")
async def test_refusals_have_novas_words_and_take_nothing(db: Database) -> None:
    some = Limits({"instances": 2, "cores": 20, "ram": 1024}, {})
    await reserve(db, some, instances=2, ram=600)
    with pytest.raises(
        OverQuota, match=r"^Quota exceeded for instances: Requested 1, but already used 2 of 2 instances$"
    ):
        await reserve(db, some, ram=1)
    with pytest.raises(
        OverQuota, match="for instances, ram: Requested 1, 512, but already used 2, 600 of 2, 1024"
    ):
        await reserve(db, some)
    assert await used(db) == {"instances": 2, "cores": 1, "ram": 600}
    await reserve(db, some, instances=0, cores=1, ram=424)  # what is not asked for is not compared


@pytest.mark.capability("UT-11")
async def test_a_users_own_limit_stops_him_and_nobody_else(db: Database) -> None:
    some = Limits({"instances": 10, "cores": -1, "ram": -1}, {"instances": 1})
    others = Limits({"instances": 10, "cores": -1, "ram": -1}, {})
    await reserve(db, some)
    with pytest.raises(OverQuota, match="already used 1 of 1 instances"):
        await reserve(db, some)
    assert await used(db) == ONE
    await reserve(db, others, user="v", instances=9)
    with pytest.raises(OverQuota, match="already used 10 of 10 instances"):
        await reserve(db, others, user="v")


async def test_a_refused_transaction_may_go_on(db: Database) -> None:
    some = Limits({"instances": 1, "cores": -1, "ram": -1}, {})

    def write(tx: Tx) -> int:
        try:
            quotas.reserve(tx, "p", "u", some, instances=2, cores=2, ram=2)
        except OverQuota:
            quotas.reserve(tx, "p", "u", some, instances=1, cores=1, ram=1)
            return 1
        return 2

    assert await db.write(write) == 1
    assert await used(db) == {"instances": 1, "cores": 1, "ram": 1}


async def test_no_race_overruns_a_quota(db: Database) -> None:
    some = Limits({"instances": 7, "cores": -1, "ram": -1}, {})
    users = ["u", "v", "w"]
    results = await asyncio.gather(
        *(reserve(db, some, user=users[number % 3]) for number in range(30)), return_exceptions=True
    )
    assert sum(result is None for result in results) == 7
    assert all(result is None or isinstance(result, OverQuota) for result in results)
    assert await used(db) == {"instances": 7, "cores": 7, "ram": 7 * 512}
    by_user = [await used(db, user) for user in users]
    assert sum(each["instances"] for each in by_user) == 7


def server(vm_state: str = "active", user: str = "u") -> Instance:
    flavor = Flavor(id=1, flavorid="1", name="f", vcpus=2, memory_mb=256, root_gb=1)
    return Instance(
        uuid=str(uuid.uuid4()),
        project_id="p",
        user_id=user,
        display_name="s",
        vm_state=vm_state,
        flavor=flavor,
    )


async def test_the_audit_finds_what_does_not_add_up_and_repair_mends_it(db: Database) -> None:
    some = await limits(db)
    mine, theirs = server(), server(user="v")

    def write(tx: Tx) -> None:
        for one in (mine, theirs):
            instances.insert(tx, one)
            quotas.reserve(tx, "p", one.user_id, some, instances=1, cores=2, ram=256)
        instances.insert(tx, server("soft-delete"))

    await db.write(write)
    assert await db.read(quotas.audit) == []
    await db.write(lambda tx: instances.mark_deleted(tx, theirs.uuid, 5))
    wrong = await db.read(quotas.audit)
    assert [(each.user_id, each.counted["instances"], each.held["instances"]) for each in wrong] == [
        ("", 2, 1),
        ("v", 1, 0),
    ]
    assert await db.write(quotas.repair) == wrong
    assert await db.read(quotas.audit) == []
    assert await used(db) == {"instances": 1, "cores": 2, "ram": 256}
