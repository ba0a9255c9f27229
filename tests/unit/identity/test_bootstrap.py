"""The first day, and every start after it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kilonova.db import identity_records as records
from kilonova.db import identity_removal, identity_roles
from kilonova.db.engine import Database, Tx
from kilonova.db.identity_records import Domain, Project, Role, User
from kilonova.db.identity_roles import SYSTEM, Assignment
from kilonova.services.identity.bootstrap import Bootstrapped, bootstrap
from kilonova.services.identity.passwords import Cost, Passwords
from kilonova.testing.clock import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def passwords(clock: VirtualClock) -> Iterator[Passwords]:
    made = Passwords(clock, Cost(log_n=4, r=8, p=1))
    yield made
    made.close()


async def start(db: Database, passwords: Passwords, admin: str = "a", demo: str = "d") -> Bootstrapped:
    return await bootstrap(db, VirtualClock(), admin, demo, passwords=passwords)


async def test_the_first_day(db: Database, passwords: Passwords) -> None:
    day = await start(db, passwords)
    assert set(day.roles) == {"reader", "member", "manager", "admin", "service"}
    assert (set(day.projects), set(day.users)) == ({"admin", "service", "demo"}, {"admin", "demo"})

    def look(tx: Tx) -> None:
        assert [each.name for each in records.select_all(tx, Domain, {})] == ["Default"]
        names = {role: set() for role in day.roles}
        for role in day.roles:
            ids = identity_roles.closure(identity_roles.implied(tx), {day.roles[role]})
            names[role] = {records.show(tx, Role, id).name for id in ids}
        assert names == {
            "admin": {"admin", "manager", "member", "reader"},
            "manager": {"manager", "member", "reader"},
            "member": {"member", "reader"},
            "reader": {"reader"},
            "service": {"service"},
        }
        assert identity_roles.list_assignments(tx) == sorted(
            [
                Assignment("user", day.users["admin"], "project", day.projects["admin"], day.roles["admin"]),
                Assignment("user", day.users["admin"], "system", SYSTEM, day.roles["admin"]),
                Assignment("user", day.users["demo"], "project", day.projects["demo"], day.roles["member"]),
            ]
        )
        demo = records.show(tx, User, day.users["demo"])
        assert (demo.domain_id, demo.default_project_id) == ("default", day.projects["demo"])

    await db.read(look)


async def test_the_days_after_change_nothing(db: Database, passwords: Passwords) -> None:
    day = await start(db, passwords)
    hashes = await db.read(lambda tx: [each.password_hash for each in records.select_all(tx, User, {})])
    assert await start(db, passwords, "other", "other") == day
    assert hashes == await db.read(
        lambda tx: [each.password_hash for each in records.select_all(tx, User, {})]
    )
    assert await passwords.verify(hashes[0], "a") or await passwords.verify(hashes[0], "d")


async def test_what_was_taken_away_stays_away(db: Database, passwords: Passwords) -> None:
    day = await start(db, passwords)

    def change(tx: Tx) -> None:
        given = Assignment("user", day.users["demo"], "project", day.projects["demo"], day.roles["member"])
        assert identity_roles.unassign(tx, given)
        assert identity_roles.imply_no_more(tx, day.roles["manager"], day.roles["member"])

    await db.write(change)
    await start(db, passwords)

    def look(tx: Tx) -> None:
        assert identity_roles.targets(tx, day.users["demo"], "project") == set()
        assert day.roles["manager"] not in identity_roles.implied(tx)

    await db.read(look)


async def test_what_is_missing_comes_back(db: Database, passwords: Passwords) -> None:
    day = await start(db, passwords)

    def change(tx: Tx) -> None:
        identity_removal.remove_user(tx, day.users["admin"])
        identity_removal.remove_project(tx, day.projects["service"])

    await db.write(change)
    again = await start(db, passwords, "recovered")
    assert again.users["admin"] != day.users["admin"] and again.users["demo"] == day.users["demo"]

    def look(tx: Tx) -> str | None:
        assert identity_roles.targets(tx, again.users["admin"], "system") == {SYSTEM}
        assert records.show(tx, Project, again.projects["service"]).name == "service"
        return records.show(tx, User, again.users["admin"]).password_hash

    assert await passwords.verify(await db.read(look), "recovered")


async def test_controllers_that_start_at_once_agree(db: Database, passwords: Passwords) -> None:
    days = await asyncio.gather(*(start(db, passwords) for _ in range(6)))
    assert all(day == days[0] for day in days)
    assert len(await db.read(lambda tx: records.select_all(tx, User, {}))) == 2
