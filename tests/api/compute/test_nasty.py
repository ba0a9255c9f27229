"""Nasty values in every field of every body, in every query key and every segment of an address: the answer
is a fault that says whose, and never a 500.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, get_args
from urllib.parse import quote

import pytest

from kilonova.api import (
    aggregates,
    availability_zones,
    extensions,
    flavor_access,
    flavor_extra_specs,
    flavors,
    hypervisors,
    keypairs,
    limits,
    quota_classes,
    quotas,
    services,
    usages,
    versions_show,
)
from kilonova.api.faults import LONGEST, NAMES, UNNAMED
from kilonova.api.routes import Route
from kilonova.api.shape import Shape, fields
from tests.api.compute.small_cloud import SmallCloud, cloud, db

__all__ = ["cloud", "db"]  # fixtures

MODULES = (
    aggregates,
    availability_zones,
    extensions,
    flavor_access,
    flavor_extra_specs,
    flavors,
    hypervisors,
    keypairs,
    limits,
    quota_classes,
    quotas,
    services,
    usages,
    versions_show,
)
ROUTES = [route for module in MODULES for route in module.ROUTES]

DEEP: Any = []
for _ in range(900):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    10**40,
    1e308,
    "",
    " ",
    "x",
    "x" * 70_000,
    "\0",
    "\ud800",
    "\U0001f4a5",
    "\u0661",
    "a/b:c",
    "'; DROP TABLE instances; --",
    "%s%n{0}",
    [],
    [None],
    [[1], {"a": 1}],
    {},
    {"a": None},
    {"": {"": ""}},
    DEEP,
)  # fmt: skip
TEXTS = (
    "",
    "0",
    "-1",
    "1.5",
    "true",
    "9" * 19,
    "9" * 400,
    "x" * 5000,
    "a,b",
    "a:b",
    "%",
    "_%_",
    "[",
    "(?P<",
    "\u2603",
    "\u0661",
    "\u00b2",
    "2026-99-99T00:00:00",
    "99999-01-01T00:00:00",
    "0001-01-01T00:00:00",
    "' OR 1=1 --",
    "00000000-0000-4000-8000-000000000001",
    "None",
    "latest",
)


def good(kind: Any) -> Any:
    """Something of the kind that a field takes, so that one bad field is alone."""
    if isinstance(kind, type) and issubclass(kind, Shape):
        return {field.key: good(field.type) for field in fields(kind) if field.required(104)}
    for part in get_args(kind):
        found = good(part)
        if found is not None:
            return found
    return {str: "x", int: 1, float: 1.0, bool: True, dict: {}}.get(kind)


def bodies(shape: type[Shape]) -> Iterator[Any]:
    """Bodies with one nasty value each, at every depth."""
    yield from VALUES
    if shape._of is not None:
        for key, value in itertools.product(("k", "", "x" * 300, "\u2603", "a/b"), VALUES):
            yield {key: value}
        return
    for field in fields(shape):
        rest = {other.key: good(other.type) for other in fields(shape) if other.required(104)}
        parts = [part for part in _shapes(field.type)]
        inner = bodies(parts[0]) if parts else iter(VALUES)
        for value in inner:
            yield {**rest, field.key: value}


def _shapes(kind: Any) -> Iterator[type[Shape]]:
    if isinstance(kind, type) and issubclass(kind, Shape):
        yield kind
    for part in get_args(kind):
        yield from _shapes(part)


async def sound(cloud: SmallCloud, method: str, path: str, **how: Any) -> None:
    """The request is answered, or refused in Nova's form."""
    reply = await cloud(method, path, **how)
    assert reply.status < 500 or reply.status == 501, (method, path[:200], str(how)[:300], reply.raw)
    if reply.status >= 400:
        ((name, fault),) = reply.json.items()
        assert name == NAMES.get(reply.status, UNNAMED)
        assert fault["code"] == reply.status and fault["message"]
        assert len(fault["message"]) <= LONGEST + 3


def address(route: Route, segment: str = "1") -> str:
    parts = (segment if part.startswith("{") else part for part in route.path.split("/"))
    return "/".join(parts)


@pytest.fixture
async def populated(cloud: SmallCloud) -> SmallCloud:
    await cloud.host("h1")
    await cloud.server(host="h1")
    body = {"flavor": {"name": "f", "id": "1", "ram": 1, "vcpus": 1, "disk": 1}}
    assert (await cloud("POST", "/flavors", body)).status == 200
    assert (await cloud("POST", "/os-aggregates", {"aggregate": {"name": "a"}})).status == 200
    return cloud


def versions(route: Route) -> set[int]:
    return {route.since, min(route.until, 60), route.until} - {0}


async def test_bodies(populated: SmallCloud) -> None:
    for route in ROUTES:
        if route.body is None:
            continue
        for version in versions(route):
            for body in bodies(route.body):
                await sound(populated, route.method, address(route), body=body, version=version)


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
async def test_raw_bodies(populated: SmallCloud) -> None:
    raws = (
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        b'{"a": 1e999}',
        b'{"a": NaN}',
        b'{"a":1,"a":2}',
        b"\xef\xbb\xbf{}",
    )
    for route in ROUTES:
        if route.body is not None:
            for raw in (*raws, b" " * 200_000):
                reply = await populated(route.method, address(route), raw=raw, version=route.until)
                assert reply.status in (400, 413), (route.path, raw[:20], reply.raw)


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
async def test_queries(populated: SmallCloud) -> None:
    for route in ROUTES:
        known = list(route.query.known) if route.query is not None else []
        for version in versions(route):
            for key, text in itertools.product([*known, "unknown"], TEXTS):
                path = f"{address(route)}?{key}={quote(text)}"
                await sound(populated, route.method, path, body={} if route.body else None, version=version)
            for raw in ("%00", "%ff=1", "a=%ff", "=", "&&", "a" * 5000, "&".join("a=1" for _ in range(1200))):
                await sound(populated, route.method, f"{address(route)}?{raw}", version=version)


async def test_addresses(populated: SmallCloud) -> None:
    for route in ROUTES:
        if "{" not in route.path:
            continue
        for version, text in itertools.product(versions(route), (*TEXTS, "\0", "..", "%2F", "\ufffd")):
            body = good(route.body) if route.body is not None and route.body._of is None else {"k": "v"}
            body = body if route.body is not None else None
            await sound(populated, route.method, address(route, text or "x"), body=body, version=version)
