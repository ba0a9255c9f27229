"""Usage of projects over HTTP: sums over periods, the servers behind them, pages, and bad periods."""

from __future__ import annotations

from typing import Any

from kilonova.clock import SECOND, iso_micro
from kilonova.model.flavor import Flavor
from kilonova.model.instance import Instance
from tests.api.compute.small_cloud import (
    MEMBER,
    OTHER,
    READER,
    SmallCloud,
    bands,
    check_keys,
    cloud,
    db,
)

__all__ = ["cloud", "db"]  # fixtures

PATH = "/os-simple-tenant-usage"
HOUR = 3600 * SECOND
ROUTES = ("os-simple-tenant-usage.list", "os-simple-tenant-usage.show")


def at(cloud: SmallCloud, hours: float) -> int:
    """So many hours before now."""
    return cloud.clock.now() - int(hours * HOUR)


def period(cloud: SmallCloud, first: float, last: float = 0) -> str:
    """A query for the time between so many hours ago."""
    return f"start={iso_micro(at(cloud, first))}&end={iso_micro(at(cloud, last))}"


async def ran(cloud: SmallCloud, first: float, last: float | None = None, **more: Any) -> Instance:
    """A server that ran between so many hours ago; last None: it runs still."""
    ended = {} if last is None else {"terminated_at": at(cloud, last), "deleted_at": at(cloud, last)}
    return await cloud.server(launched_at=at(cloud, first), **ended, **more)


async def totals(cloud: SmallCloud, query: str, **how: Any) -> dict[str, float]:
    """Project -> hours."""
    found = await cloud.get(f"{PATH}?{query}", **how)
    return {one["tenant_id"]: one["total_hours"] for one in found["tenant_usages"]}


async def test_each_microversion_has_its_own_keys(cloud: SmallCloud) -> None:
    await ran(cloud, 2)
    for version in bands(*ROUTES):
        for more in ("", "&limit=1"):
            if more and version < 40:
                continue
            listed = await cloud.get(f"{PATH}?detailed=1&{period(cloud, 1)}{more}", version=version)
            check_keys(ROUTES[0], version, listed)
            assert ("tenant_usages_links" in listed) == bool(more)
            shown = await cloud.get(f"{PATH}/p1?{period(cloud, 1)}{more}", version=version)
            check_keys(ROUTES[1], version, shown)
            assert ("tenant_usage_links" in shown) == bool(more)


async def test_a_project_is_charged_for_what_ran_in_the_period(cloud: SmallCloud) -> None:
    running = await ran(cloud, 5)
    ended = await ran(cloud, 10, 4)
    await ran(cloud, 9, 8)  # before it
    await ran(cloud, 0.5)  # after it
    await cloud.server(launched_at=None)  # never
    await ran(cloud, 100, project="p2")
    found = (await cloud.get(f"{PATH}/p1?{period(cloud, 6, 1)}", token=READER))["tenant_usage"]
    assert {key: value for key, value in found.items() if key != "server_usages"} == {
        "tenant_id": "p1",
        "start": iso_micro(at(cloud, 6)),
        "stop": iso_micro(at(cloud, 1)),
        "total_hours": 6.0,  # four of the one and two of the other
        "total_vcpus_usage": 12.0,
        "total_memory_mb_usage": 6.0 * 512,
        "total_local_gb_usage": 6.0 * 4,
    }
    by_id = {one["instance_id"]: one for one in found["server_usages"]}
    assert by_id == {
        running.uuid: {
            "instance_id": running.uuid,
            "name": running.display_name,
            "tenant_id": "p1",
            "flavor": "m1.tiny",
            "hours": 4.0,
            "vcpus": 2,
            "memory_mb": 512,
            "local_gb": 4,
            "started_at": iso_micro(at(cloud, 5)),
            "ended_at": None,
            "state": "active",
            "uptime": 5 * 3600,
        },
        ended.uuid: {
            "instance_id": ended.uuid,
            "name": ended.display_name,
            "tenant_id": "p1",
            "flavor": "m1.tiny",
            "hours": 2.0,
            "vcpus": 2,
            "memory_mb": 512,
            "local_gb": 4,
            "started_at": iso_micro(at(cloud, 10)),
            "ended_at": iso_micro(at(cloud, 4)),
            "state": "terminated",
            "uptime": 6 * 3600,
        },
    }


async def test_lists_are_of_all_projects(cloud: SmallCloud) -> None:
    await ran(cloud, 3)
    await ran(cloud, 2, 1)
    await ran(
        cloud, 4, project="p2", flavor=Flavor(id=2, flavorid="2", name="big", vcpus=8, memory_mb=1, root_gb=0)
    )
    assert await totals(cloud, period(cloud, 10)) == {"p1": 4.0, "p2": 4.0}
    found = (await cloud.get(f"{PATH}?{period(cloud, 10)}"))["tenant_usages"]
    assert [one["total_vcpus_usage"] for one in found] == [8.0, 32.0]
    assert all("server_usages" not in one for one in found)
    for word, count in (("1", 2), ("True", 2), ("0", None), ("x", None)):  # openstacksdk says True
        found = (await cloud.get(f"{PATH}?detailed={word}&{period(cloud, 10)}"))["tenant_usages"]
        servers = found[0].get("server_usages")
        assert (None if servers is None else len(servers)) == count


async def test_a_period_ends_now_at_the_latest_and_may_be_left_out(cloud: SmallCloud) -> None:
    await ran(cloud, 2)
    later = await cloud.get(f"{PATH}/p1?{period(cloud, 1, -24)}")
    assert later["tenant_usage"]["total_hours"] == 1.0
    assert later["tenant_usage"]["stop"] == iso_micro(cloud.clock.now())
    assert await totals(cloud, f"start={iso_micro(at(cloud, 1))}") == {"p1": 1.0}
    assert await totals(cloud, "") == {"p1": 0.0}  # of this very moment
    assert (await cloud.get(f"{PATH}/p1"))["tenant_usage"]["total_hours"] == 0.0
    assert await totals(cloud, period(cloud, -1, -2)) == {"p1": 0.0}


async def test_a_project_that_used_nothing_has_a_sum_too(cloud: SmallCloud) -> None:
    for project in ("p1", "nobody"):
        shown = await cloud.get(f"{PATH}/{project}?{period(cloud, 1)}")
        check_keys(ROUTES[1], 1, shown)
        assert shown["tenant_usage"] == {
            "tenant_id": project,
            "start": iso_micro(at(cloud, 1)),
            "stop": iso_micro(at(cloud, 0)),
            "total_hours": 0.0,
            "total_vcpus_usage": 0.0,
            "total_memory_mb_usage": 0.0,
            "total_local_gb_usage": 0.0,
            "server_usages": [],
        }
    assert await totals(cloud, period(cloud, 1)) == {}


async def test_pages_go_on_where_the_last_one_ended(cloud: SmallCloud) -> None:
    for number in range(5):
        await ran(cloud, number + 1, project="p1" if number < 3 else "p2")
    first = await cloud.get(f"{PATH}?detailed=1&limit=2&{period(cloud, 10)}", version=75)
    second = await cloud.follow(first["tenant_usages_links"], version=75)
    third = await cloud.follow(second["tenant_usages_links"], version=75)
    assert "tenant_usages_links" not in third
    pages = [
        [(one["tenant_id"], len(one["server_usages"])) for one in page["tenant_usages"]]
        for page in (first, second, third)
    ]
    assert pages == [[("p1", 2)], [("p1", 1), ("p2", 1)], [("p2", 1)]]
    assert sum(one["total_hours"] for page in (first, second, third) for one in page["tenant_usages"]) == 15
    shown = await cloud.get(f"{PATH}/p1?limit=2&{period(cloud, 10)}", version=40, token=MEMBER)
    rest = await cloud.follow(shown["tenant_usage_links"], version=40, token=MEMBER)
    assert [len(page["tenant_usage"]["server_usages"]) for page in (shown, rest)] == [2, 1]
    cloud.option("max_limit", 4, "api")
    capped = await cloud.get(f"{PATH}?detailed=1&{period(cloud, 10)}", version=40)
    assert [len(one["server_usages"]) for one in capped["tenant_usages"]] == [3, 1]
    everything = await cloud.get(f"{PATH}?detailed=1&limit=1&{period(cloud, 10)}", version=39)
    assert [len(one["server_usages"]) for one in everything["tenant_usages"]] == [3, 2]  # not yet looked at


async def test_bad_requests_are_refused(cloud: SmallCloud) -> None:
    for query, version, status in (
        ("start=2026-01-01T00:00:00&end=2026-01-01T00:00:00", 1, 400),
        ("start=2026-01-02T00:00:00&end=2026-01-01T00:00:00", 1, 400),
        ("start=2126-01-02T00:00:00", 1, 400),
        ("end=2026-01-02T00:00:00", 1, 400),
        ("start=2026-01-01T00:00:00.5&end=2026-01-02 00:00:00.000001", 1, 200),
        ("start=2026-01-01", 1, 400),
        ("start=yesterday", 1, 400),
        ("start=2026-13-01T00:00:00", 1, 400),
        ("start=2026-01-01T25:00:00", 1, 400),
        ("start=2026-01-01T00:00:00%2B01:00", 1, 400),
        ("start=1", 1, 400),
        ("start=" + "9" * 300, 1, 400),
        ("start=%00", 1, 400),
        ("end=٢٠٢٦-01-01T00:00:00", 1, 400),
        ("limit=x", 39, 200),
        ("limit=x", 40, 400),
        ("limit=-1", 40, 400),
        ("marker=none", 39, 200),
        ("marker=none", 40, 400),
        ("x=1", 74, 200),
        ("x=1", 75, 400),
    ):
        for path in (PATH, f"{PATH}/p1"):
            reply = await cloud("GET", f"{path}?{query}", version=version)
            assert reply.status == status, (query, version, reply.raw)
            assert status == 200 or reply.message


async def test_others_are_for_administrators(cloud: SmallCloud) -> None:
    for token, path, status in (
        (MEMBER, f"{PATH}/p1", 200),
        (READER, f"{PATH}/p1", 200),
        (OTHER, f"{PATH}/p1", 403),
        (MEMBER, PATH, 403),
        ("nobody", PATH, 401),
    ):
        assert (await cloud("GET", path, token=token)).status == status, (token, path)
