"""Key pairs: one of a name for each user, at most as many as he may have, in pages by name."""

from __future__ import annotations

import pytest

from kilonova.db import keypairs
from kilonova.db.engine import Database
from kilonova.db.keypairs import Keypair
from kilonova.errors import Conflict, Invalid, NotFound, OverQuota


def key(name: str, user: str = "u") -> Keypair:
    return Keypair(
        user_id=user, name=name, type="ssh", fingerprint="aa:bb", public_key="ssh-rsa AA", created_at=5
    )


async def make(db: Database, *names: str, user: str = "u", limit: int = 100) -> None:
    for name in names:
        await db.write(lambda tx, name=name: keypairs.create(tx, key(name, user), limit))  # type: ignore[misc]


async def test_a_key_comes_back_for_its_user_alone(db: Database) -> None:
    made = await db.write(lambda tx: keypairs.create(tx, key("k"), 1))
    assert made.id > 0
    assert await db.read(lambda tx: keypairs.show(tx, "u", "k")) == made
    assert await db.read(lambda tx: keypairs.show(tx, "other", "k")) is None
    await make(db, "k", user="other")  # the same name is free for others


@pytest.mark.capability("API-144")
async def test_names_are_taken_once_and_the_quota_holds(db: Database) -> None:
    await make(db, "a")
    with pytest.raises(Conflict, match="Key pair 'a' already exists"):
        await make(db, "a")
    with pytest.raises(OverQuota, match="too many key pairs"):
        await make(db, "b", limit=1)
    await make(db, "b", limit=-1)
    assert await db.read(lambda tx: keypairs.count(tx, "u")) == 2


async def test_pages_are_in_the_order_of_names(db: Database) -> None:
    await make(db, "c", "a", "d", "b")
    first = await db.read(lambda tx: keypairs.list_page(tx, "u", limit=2))
    assert [one.name for one in first] == ["a", "b"]
    rest = await db.read(lambda tx: keypairs.list_page(tx, "u", marker="b"))
    assert [one.name for one in rest] == ["c", "d"]
    with pytest.raises(Invalid, match=r"marker \[z\] not found"):
        await db.read(lambda tx: keypairs.list_page(tx, "u", marker="z"))


async def test_what_is_removed_is_gone(db: Database) -> None:
    await make(db, "a")
    with pytest.raises(NotFound):
        await db.write(lambda tx: keypairs.remove(tx, "other", "a"))
    await db.write(lambda tx: keypairs.remove(tx, "u", "a"))
    with pytest.raises(NotFound, match="Keypair a not found for user u"):
        await db.write(lambda tx: keypairs.remove(tx, "u", "a"))
