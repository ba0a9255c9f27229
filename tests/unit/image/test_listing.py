"""Lists: what each project sees, every filter, every order, and pages that neither repeat nor leave out."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from kilonova.db.images import StoredImage
from kilonova.errors import Invalid
from kilonova.model.context import RequestContext
from kilonova.services.image.builtin import BuiltinImage
from kilonova.services.image.fields import NewImage
from kilonova.services.image.filters import parse
from tests.unit.image.conftest import ADMIN, ALICE, BOB, UNSCOPED, chunks


async def listed(images: BuiltinImage, context: RequestContext, **filters: str) -> list[StoredImage]:
    return await images.list(parse(filters.items(), context).query)


async def names(images: BuiltinImage, context: RequestContext, **filters: str) -> set[str]:
    return {str(each.name) for each in await listed(images, context, **filters)}


@pytest.fixture
async def shelf(images: BuiltinImage) -> BuiltinImage:
    for owner, context in (("alice", ALICE), ("bob", BOB)):
        for visibility in ("private", "shared", "community"):
            await images.create(
                context, NewImage(name=f"{owner} {visibility}", owner=owner, visibility=visibility)
            )
    await images.create(ADMIN, NewImage(name="public", owner="admin", visibility="public"))
    await images.create(ALICE, NewImage(name="hidden", owner="alice", hidden=True))
    for name, status in (("offered", None), ("taken", "accepted"), ("declined", "rejected")):
        image = await images.create(ALICE, NewImage(name=name, owner="alice"))
        await images.members.add(ALICE, image.id, "bob")
        if status:
            await images.members.set_status(BOB, image.id, "bob", status)
    return images


BOBS = {"bob private", "bob shared", "bob community"}


async def test_each_sees_its_own_and_what_is_public_or_accepted(shelf: BuiltinImage) -> None:
    assert await names(shelf, BOB) == {*BOBS, "public", "taken"}
    assert await names(shelf, UNSCOPED) == {"public"}
    assert await names(shelf, BOB, visibility="private") == {"bob private"}
    assert await names(shelf, BOB, visibility="public") == {"public"}
    assert await names(shelf, BOB, visibility="community") == {"bob community", "alice community"}
    assert await names(shelf, BOB, visibility="shared") == {"bob shared", "taken"}
    assert await names(shelf, BOB, visibility="all") == {*BOBS, "public", "taken", "alice community"}
    assert await names(shelf, UNSCOPED, visibility="shared") == set()
    assert await names(shelf, UNSCOPED, visibility="all") == {"public", "alice community", "bob community"}


async def test_member_status_chooses_among_the_shared(shelf: BuiltinImage) -> None:
    for status, name in (("pending", "offered"), ("accepted", "taken"), ("rejected", "declined")):
        assert await names(shelf, BOB, visibility="shared", member_status=status) == {"bob shared", name}
    everything = {"bob shared", "offered", "taken", "declined"}
    assert await names(shelf, BOB, visibility="shared", member_status="all") == everything


async def test_administrators_see_everything_but_the_community_of_others(shelf: BuiltinImage) -> None:
    seen = await names(shelf, ADMIN)
    assert {"alice private", "bob private", "offered", "public"} <= seen
    assert not {"alice community", "hidden"} & seen
    assert "alice community" in await names(shelf, ADMIN, visibility="all")
    assert await names(shelf, ADMIN, visibility="private") == {"alice private", "bob private"}
    assert await names(shelf, ADMIN, owner="bob", visibility="all") == BOBS


async def test_hidden_images_are_listed_when_asked_for(shelf: BuiltinImage) -> None:
    assert "hidden" not in await names(shelf, ALICE)
    assert await names(shelf, ALICE, os_hidden="True") == {"hidden"}
    assert "hidden" not in await names(shelf, BOB, os_hidden="true")


async def test_filters_on_fields_tags_and_properties(images: BuiltinImage) -> None:
    first = await images.create(
        ALICE,
        NewImage(
            name="a, b",
            owner="alice",
            disk_format="raw",
            container_format="bare",
            min_disk=5,
            protected=True,
            tags=("red", "big one", 'a"b'),
            properties={"image_type": "snapshot", "we'ird \"key": "va'l\"ue", "empty": ""},
        ),
    )
    second = await images.create(
        ALICE,
        NewImage(
            name="second", owner="alice", disk_format="qcow2", tags=("red",), properties={"image_type": "x"}
        ),
    )
    await images.upload(ALICE, first.id, chunks(b"x" * 1000))
    one, two, both = {"a, b"}, {"second"}, {"a, b", "second"}
    cases: list[tuple[dict[str, str], set[str]]] = [
        ({"name": "second"}, two),
        ({"name": "none"}, set()),
        ({"name": 'in:"a, b",second'}, both),
        ({"name": "eq:second"}, two),
        ({"id": f"in:{first.id},{second.id}"}, both),
        ({"id": first.id}, one),
        ({"status": "active"}, one),
        ({"status": "in:queued,active"}, both),
        ({"disk_format": "in:raw,iso"}, one),
        ({"container_format": "bare"}, one),
        ({"protected": "true"}, one),
        ({"protected": "False"}, two),
        ({"min_disk": "5"}, one),
        ({"size_min": "1000", "size_max": "1000"}, one),
        ({"size_min": "1001"}, set()),
        ({"size": "1000"}, one),
        ({"owner": "alice"}, both),
        ({"owner": "bob"}, set()),
        ({"tag": "red"}, both),
        ({"tag": "big one"}, one),
        ({"tag": 'a"b'}, one),
        ({"tag": "re"}, set()),
        ({"image_type": "snapshot"}, one),
        ({"image_type": "snap"}, set()),
        ({"image_type": "%"}, set()),
        ({"empty": ""}, one),
        ({"we'ird \"key": "va'l\"ue"}, one),
        ({"os_hash_algo": "sha512"}, one),
        ({"checksum": "0" * 32}, set()),
        ({"created_at": "gte:2000-01-01T00:00:00Z"}, both),
        ({"created_at": "lt:2000-01-01T00:00:00"}, set()),
        ({"updated_at": "neq:2000-01-01"}, both),
    ]
    for filters, expected in cases:
        assert await names(images, ALICE, **filters) == expected, filters


async def test_several_tags_must_all_be_there(images: BuiltinImage) -> None:
    await images.create(ALICE, NewImage(name="both", owner="alice", tags=("a", "b")))
    await images.create(ALICE, NewImage(name="one", owner="alice", tags=("a",)))
    query = parse([("tag", "a"), ("tag", "b")], ALICE).query
    assert [each.name for each in await images.list(query)] == ["both"]


@pytest.mark.parametrize(
    "items",
    [
        [("limit", "-1")],
        [("limit", "x")],
        [("limit", "9" * 30)],
        [("limit", "²")],
        [("marker", "")],
        [("sort", "colour:asc")],
        [("sort", "name:up")],
        [("sort", "")],
        [("sort", "name,name")],
        [("sort_key", "properties")],
        [("sort_key", "name"), ("sort_dir", "sideways")],
        [("sort_key", "name"), ("sort_dir", "asc"), ("sort_dir", "asc")],
        [("sort", "name"), ("sort_key", "name")],
        [("visibility", "secret")],
        [("member_status", "x")],
        [("status", "in:active,broken")],
        [("os_hidden", "maybe")],
        [("protected", "")],
        [("size_min", "1.5")],
        [("size_max", str(1 << 63))],
        [("min_ram", "-5")],
        [("name", "gt:x")],
        [("name", 'in:"open')],
        [("created_at", "yesterday")],
        [("created_at", "gt:99999-01-01")],
        [("created_at", "lt:0001-01-01T00:00:00+23:59x")],
        [("name", "a\0b")],
        [("k\0", "v")],
    ],
)
def test_bad_parameters_are_refused(items: list[tuple[str, str]]) -> None:
    with pytest.raises(Invalid):
        parse(items, ALICE)


@pytest.mark.parametrize(
    "order",
    [
        [],
        [("sort", "name:asc")],
        [("sort", "name")],
        [("sort", "size:asc,disk_format:desc")],
        [("sort_key", "min_ram"), ("sort_dir", "asc")],
        [("sort_key", "disk_format"), ("sort_key", "name"), ("sort_dir", "desc"), ("sort_dir", "asc")],
        [("sort", "created_at:asc")],
        [("sort", "id:asc")],
    ],
)
async def test_pages_neither_repeat_nor_leave_out(images: BuiltinImage, order: list[tuple[str, str]]) -> None:
    made = []
    for number in range(17):
        image = await images.create(
            ALICE,
            NewImage(
                name=None if number % 5 == 0 else f"n{number % 4}",
                owner="alice",
                disk_format=(None, "raw", "qcow2")[number % 3],
                min_ram=number % 2,
            ),
        )
        made.append(image.id)
    query = parse([*order, ("limit", "4")], ALICE).query
    collected: list[StoredImage] = []
    while page := await images.list(query):
        assert len(page) <= 4
        collected += page
        query = msgspec.structs.replace(query, marker=page[-1])
    assert sorted(each.id for each in collected) == sorted(made)
    whole = await images.list(parse([*order, ("limit", "100")], ALICE).query)
    assert [each.id for each in whole] == [each.id for each in collected]
    first = query.sorts[0]
    if first.key in ("created_at", "id", "min_ram"):
        values = [getattr(each, first.key) for each in whole]
        assert all((a >= b) if first.descending else (a <= b) for a, b in pairwise(values))


async def test_a_limit_of_nothing_gives_nothing(images: BuiltinImage) -> None:
    await images.create(ALICE, NewImage(name="a", owner="alice"))
    assert await listed(images, ALICE, limit="0") == []
