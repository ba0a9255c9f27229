"""Lists of servers: their order, page by page."""

from __future__ import annotations

from urllib.parse import parse_qs, quote, urlsplit

import pytest

from tests.api.compute.asgi import Api
from tests.api.compute.shelf import NAMES, refused, shelf

__all__ = ["shelf"]  # the fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def ordered(shelf: Api, query: str, v: int = 104, who: str = "member") -> list[str]:
    reply = await shelf("GET", f"/servers/detail?{query}", v=v, who=who)
    assert reply.status == 200, reply.content
    return [each["name"] for each in reply.json["servers"]]


@pytest.mark.capability("IL-1")
async def test_the_newest_first(shelf: Api) -> None:
    assert await ordered(shelf, "") == NAMES[::-1]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sort_key=display_name&sort_dir=asc", sorted(NAMES)),
        ("sort_key=display_name", sorted(NAMES, reverse=True)),
        ("sort_key=display_name&sort_dir=desc", sorted(NAMES, reverse=True)),
        ("sort_key=created_at&sort_dir=asc", NAMES),
        ("sort_dir=asc", NAMES),
        ("sort_key=memory_mb&sort_dir=asc", NAMES[::-1]),
        ("sort_key=power_state&sort_key=created_at&sort_dir=desc&sort_dir=asc", None),
        (
            "sort_key=vm_state&sort_key=display_name&sort_dir=asc",
            ["broken", "moving", "web-1", "web-2", "new", "db-2", "Mixed Case", "db-1"],
        ),
        ("sort_key=task_state&sort_key=uuid&sort_dir=asc", None),
        ("sort_key=image_ref&sort_key=uuid&sort_dir=asc", None),
        ("sort_key=instance_type_id&sort_dir=asc", None),
        ("sort_key=launched_at&sort_dir=asc", None),
        ("sort_key=locked&sort_dir=desc", None),
        ("sort_key=config_drive&sort_key=created_at", None),
        ("sort_key=key_name", None),
    ],
)
@pytest.mark.capability("IL-2")
async def test_orders_and_their_pages(shelf: Api, query: str, expected: list[str] | None) -> None:
    """Page by page one gets what one gets at once, whatever the order, also where keys are equal."""
    whole = await ordered(shelf, query)
    assert sorted(whole) == sorted(NAMES)
    assert expected is None or whole == expected
    for limit in (1, 3):
        walked: list[str] = []
        address: str | None = f"/servers/detail?{query}&limit={limit}"
        while address is not None:
            reply = await shelf("GET", address, v=104)
            assert len(reply.json["servers"]) <= limit
            walked += [each["name"] for each in reply.json["servers"]]
            links = reply.json.get("servers_links")
            address = None if links is None else _within(links)
        assert walked == whole


def _within(links: list[dict[str, str]]) -> str:
    (link,) = links
    assert link["rel"] == "next"
    parts = urlsplit(link["href"])
    assert (parts.scheme, parts.netloc) == ("http", "cloud.example:8774")
    return parts.path.removeprefix("/v2.1") + "?" + parts.query


async def test_mixed_directions(shelf: Api) -> None:
    reply = await shelf(
        "GET", "/servers/detail?sort_key=power_state&sort_key=created_at&sort_dir=desc&sort_dir=asc", v=104
    )
    keys = [(-each["OS-EXT-STS:power_state"], each["created"]) for each in reply.json["servers"]]
    assert keys == sorted(keys)


async def test_keys_for_administrators_only(shelf: Api) -> None:
    for key in ("host", "node"):
        reason = await refused(shelf, f"sort_key={key}", who="member", status=403)
        assert key in reason
        assert len(await ordered(shelf, f"sort_key={key}&all_tenants=1", who="admin")) == len(NAMES) + 2


async def test_locked_is_a_sort_key_since_2_73(shelf: Api) -> None:
    assert (await ordered(shelf, "sort_key=locked&sort_dir=desc", 73))[0] == "web-2"
    assert (await ordered(shelf, "sort_key=locked&sort_dir=desc", 72))[0] == "new"


@pytest.mark.capability("IL-3", "IL-5")
async def test_limits_and_markers(shelf: Api) -> None:
    assert await ordered(shelf, "limit=0") == []
    assert await ordered(shelf, "limit=2") == NAMES[::-1][:2]
    assert await ordered(shelf, "limit=99999999999999999999999") == NAMES[::-1]
    reply = await shelf("GET", "/servers?limit=8", v=104)
    assert "servers_links" in reply.json
    reply = await shelf("GET", "/servers?limit=9", v=104)
    assert "servers_links" not in reply.json
    listed = (await shelf("GET", "/servers", v=104)).json["servers"]
    assert await ordered(shelf, f"marker={listed[6]['id']}") == [NAMES[0]]
    assert await ordered(shelf, f"marker={listed[7]['id']}") == []
    theirs = (await shelf("GET", "/servers", v=104, who="other")).json["servers"][0]["id"]
    reason = await refused(shelf, f"marker={theirs}", who="member")
    assert reason == f"marker [{theirs}] not found"
    gone = (await shelf("GET", "/servers?deleted=1&all_tenants=1", who="admin")).json["servers"][0]["id"]
    assert await ordered(shelf, f"marker={gone}") == NAMES[::-1]


@pytest.mark.capability("IL-5")
async def test_pages_that_the_operator_limits(shelf: Api) -> None:
    options = shelf.app.cloud.settings.options["api"]  # type: ignore[attr-defined]
    options["max_limit"] = 3
    try:
        for query in ("", "limit=5"):
            reply = await shelf("GET", f"/servers?{query}", v=104)
            assert len(reply.json["servers"]) == 3
            following = parse_qs(urlsplit(reply.json["servers_links"][0]["href"]).query)
            assert following["marker"] == [reply.json["servers"][-1]["id"]]
            assert following.get("limit") == (["3"] if query else None)
    finally:
        options["max_limit"] = 1000


async def test_the_next_page_keeps_the_filters(shelf: Api) -> None:
    word = quote("^web|^db", safe="")
    reply = await shelf(
        "GET", f"/servers?name={word}&limit=2&sort_key=display_name&sort_dir=asc&tags-any=a&tags-any=", v=74
    )
    assert reply.json["servers"] == []
    reply = await shelf("GET", f"/servers?name={word}&limit=2&sort_key=display_name&sort_dir=asc", v=104)
    assert [each["name"] for each in reply.json["servers"]] == ["db-1", "db-2"]
    reply = await shelf("GET", _within(reply.json["servers_links"]), v=104)
    assert [each["name"] for each in reply.json["servers"]] == ["web-1", "web-2"]
