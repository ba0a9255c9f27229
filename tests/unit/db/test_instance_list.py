"""Lists of servers: every kind of condition, every order, and pages that leave nothing out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from kilonova.db import instance_list, instances
from kilonova.db.engine import Database
from kilonova.db.instance_list import ServerList
from kilonova.errors import NotFound
from kilonova.model.flavor import Flavor
from kilonova.model.instance import ImageMeta, Instance
from kilonova.model.port import FixedIp, Vif


def _vif(address: str, version: int = 4) -> Vif:
    ip = FixedIp(subnet_id="s", address=address, version=version)
    return Vif(port_id="p", mac="m", network_id="n", network_name="net", fixed_ips=(ip,))


def _server(number: int, **values: Any) -> Instance:
    flavor = Flavor(id=number, flavorid=f"f{number}", name="tiny", vcpus=1, memory_mb=64, root_gb=1)
    defaults: dict[str, Any] = {
        "project_id": "p1",
        "user_id": "u1",
        "display_name": f"web-{number}",
        "vm_state": "active",
        "flavor": flavor,
        "created_at": 100 + number // 2,  # some are of the same moment
    }
    return Instance(uuid=f"s{number}", **{**defaults, **values})


SERVERS = [
    _server(0, host="h1", tags=("a", "b"), vifs=(_vif("10.0.0.1"),)),
    _server(1, host="h2", tags=("b",), vifs=(_vif("10.0.0.22"), _vif("fd00::1", 6)), task_state="rebooting"),
    _server(2, vm_state="stopped", locked="admin", image=ImageMeta(id="img")),
    _server(3, display_name="Datenbänke 100%", project_id="p2", updated_at=150),
    _server(4, vm_state="deleted", deleted_at=170, updated_at=170),
    _server(5, vm_state="error", host="h1", updated_at=160),
]


@pytest.fixture
async def filled(db: Database) -> Database:
    def fill(tx: Any) -> None:
        for server in SERVERS:
            instances.insert(tx, server)

    await db.write(fill)
    return db


async def found(db: Database, build: Callable[[ServerList], None] | None = None, **changes: Any) -> list[str]:
    wanted = ServerList()
    if build is not None:
        build(wanted)
    for name, value in changes.items():
        setattr(wanted, name, value)
    rows = await db.read(lambda tx: instance_list.page(tx, wanted))
    return [row[0] for row in rows]


CONDITIONS: list[tuple[str, Callable[[ServerList], None], str]] = [
    ("project", lambda w: w.of_project("p2"), "3"),
    ("equals", lambda w: w.equals("host", "h1"), "05"),
    ("one of two", lambda w: w.one_of("uuid", ["s1", "s3", "sX"]), "13"),
    ("one of none", lambda w: w.one_of("uuid", []), ""),
    ("pattern", lambda w: w.matches("display_name", "^web-[12]$"), "12"),
    ("text", lambda w: w.contains("display_name", "100%"), "3"),
    ("a text in which a wildcard is itself", lambda w: w.contains("display_name", "_"), ""),
    ("no host", lambda w: w.is_null("host", True), "234"),
    ("locked", lambda w: w.is_null("locked", False), "2"),
    ("changed since", lambda w: w.at_least("updated_at", 160), "45"),
    ("changed before", lambda w: w.at_most("updated_at", 160), "35"),
    ("states", lambda w: w.in_states([("stopped", None), ("active", ("rebooting", "x"))]), "12"),
    ("flavor", lambda w: w.part("flavor", "flavorid", "f3"), "3"),
    ("image", lambda w: w.part("image", "id", "img"), "2"),
    ("all tags", lambda w: w.tags(["a", "b"], every=True, wanted=True), "0"),
    ("any tag", lambda w: w.tags(["a", "b"], every=False, wanted=True), "01"),
    ("not all tags", lambda w: w.tags(["a", "b"], every=True, wanted=False), "12345"),
    ("no tag of these", lambda w: w.tags(["a", "b"], every=False, wanted=False), "2345"),
    ("address", lambda w: w.address(4, r"10\.0\.0\.2"), "1"),
    ("address of version 6", lambda w: w.address(6, "fd00"), "1"),
    ("nothing", lambda w: w.nothing(), ""),
]


@pytest.mark.capability("API-128", "API-129")
@pytest.mark.parametrize(("name", "build", "expected"), CONDITIONS, ids=[each[0] for each in CONDITIONS])
async def test_conditions(
    filled: Database, name: str, build: Callable[[ServerList], None], expected: str
) -> None:
    assert sorted(await found(filled, build)) == [f"s{digit}" for digit in expected]


async def test_conditions_hold_together(filled: Database) -> None:
    def build(wanted: ServerList) -> None:
        wanted.of_project("p1")
        wanted.is_null("deleted_at", True)
        wanted.equals("host", "h1")
        wanted.matches("display_name", "5")

    assert await found(filled, build) == ["s5"]


async def test_the_newest_comes_first(filled: Database) -> None:
    assert await found(filled) == ["s5", "s4", "s3", "s2", "s1", "s0"]


ORDERS: list[tuple[tuple[tuple[str, bool], ...], str]] = [
    ((("created_at", True), ("id", True)), "543210"),
    ((("created_at", False), ("id", False)), "012345"),
    ((("created_at", False), ("id", True)), "103254"),
    ((("host", False), ("id", False)), "234051"),
    ((("updated_at", True), ("id", True)), "453210"),
    ((("image_ref", True), ("id", False)), "201345"),
]


@pytest.mark.capability("API-127")
@pytest.mark.parametrize(("sort", "expected"), ORDERS)
@pytest.mark.parametrize("size", [1, 2, 4])
async def test_pages_in_any_order_leave_nothing_out(
    filled: Database, sort: tuple[tuple[str, bool], ...], expected: str, size: int
) -> None:
    seen: list[str] = []
    marker = None
    while True:
        part = await found(filled, sort=sort, limit=size, marker=marker)
        seen += part
        if len(part) < size:
            break
        marker = part[-1]
    assert "".join(uuid[1:] for uuid in seen) == expected


async def test_a_marker_must_be_there_and_of_the_project(filled: Database) -> None:
    with pytest.raises(NotFound, match=r"marker \[zzz\] not found"):
        await found(filled, marker="zzz")
    with pytest.raises(NotFound):
        await found(filled, lambda wanted: wanted.of_project("p1"), marker="s3")


async def test_one_row_with_all_columns_but_those_not_wanted(filled: Database) -> None:
    row = await filled.read(lambda tx: instance_list.show(tx, "s3", without=frozenset({"user_data", "host"})))
    assert row is not None
    values = dict(zip(instance_list.DETAIL, row, strict=True))
    assert values["uuid"] == "s3"
    assert values["host"] is None
    assert msgspec.json.decode(values["flavor"])["flavorid"] == "f3"
    assert await filled.read(lambda tx: instance_list.show(tx, "s4")) is None  # deleted
