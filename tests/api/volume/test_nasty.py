"""Bad input of every kind is the caller's fault, in Cinder's shape, and never ours."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kilonova.services.volume.api import ROUTES
from tests.api.volume.conftest import Face

ID = "11111111-1111-4111-8111-111111111111"
WORDS = ["x", "..", "%00", "%2e%2e%2f", "\u00e9", "x" * 300, ID, ID.upper(), "0", "-1", "' OR 1=1 --", "%ff"]


def fault(reply: Any) -> str:
    """The message of an error, which must have Cinder's shape."""
    assert 400 <= reply.status < 500 or reply.status == 501, (reply.status, reply.content)
    ((_, body),) = reply.json.items()
    assert body["code"] == reply.status
    return str(body["message"])


VOLUMES: list[dict[str, Any]] = [
    {},
    {"size": 0},
    {"size": -1},
    {"size": 1.5},
    {"size": True},
    {"size": "one"},
    {"size": [1]},
    {"size": 2**31},
    {"size": 10**30},
    {"size": "9" * 400},
    {"size": None},
    {"size": 1, "name": 5},
    {"size": 1, "name": "x" * 256},
    {"size": 1, "name": "a\0b"},
    {"size": 1, "description": ["x"]},
    {"size": 1, "metadata": "x"},
    {"size": 1, "metadata": {"": "x"}},
    {"size": 1, "metadata": {"k": 1}},
    {"size": 1, "metadata": {"k" * 256: "v"}},
    {"size": 1, "metadata": {"k": "v" * 256}},
    {"size": 1, "availability_zone": "moon"},
    {"size": 1, "volume_type": 7},
    {"size": 1, "imageRef": "no uuid"},
    {"size": 1, "imageRef": ID},
    {"size": 1, "source_volid": "no uuid"},
    {"size": 1, "source_volid": ID, "imageRef": ID},
    {"size": 1, "snapshot_id": ID},
    {"size": 1, "backup_id": ID},
    {"size": 1, "multiattach": True},
    {"size": 1, "unknown": 1},
]


async def test_volumes_that_cannot_be(face: Face) -> None:
    for values in VOLUMES:
        reply = await face("POST", "/v3/volumes", {"volume": values})
        assert fault(reply.expect(400)), values
    assert (await face("GET", "/v3/volumes")).json == {"volumes": []}
    assert (await face("GET", "/v3/limits")).json["limits"]["absolute"]["totalVolumesUsed"] == 0


BODIES: list[Any] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b'{"volume": 1}',
    b'{"volume": {"size": 1}, "volume": {}}',
    b'{"volume": NaN}',
    b"\xff\xfe",
    b'{"volume": {"name": "\\ud800", "size": 1}}',
    b"[" * 5000,
    b'{"a":' * 500 + b"1" + b"}" * 500,
    {"volume": []},
    {"os-extend": {"new_size": "x"}},
    {"os-extend": []},
    {"os-extend": None},
    {"os-set_bootable": {"bootable": "maybe"}},
    {"os-detach": {"attachment_id": {"a": 1}}},
    {"os-reset_status": {}},
    {"os-set_image_metadata": {"metadata": {"a": 1}}},
    {"os-unset_image_metadata": {}},
    {"metadata": {"a": None}},
    {"meta": {"a": "b"}},
    {"attachment": {"connector": {}}},
    {"quota_set": {"volumes": "many"}},
    {"volume_type": {"name": ""}},
    {"extra_specs": {"a": 1}},
    {},
    {"a": 1, "b": 2},
]


TAKING = [(path, method) for path, method, *_ in ROUTES if method in ("POST", "PUT")]


async def test_bodies(face: Face) -> None:
    volume = await face.made()
    for (path, method), body in product(TAKING, BODIES):
        at = path.replace("{id}", volume["id"]).replace("{key}", "k")
        for who in ("alice", "admin"):
            reply = await face(method, at, body, who, 70)
            if reply.status < 300:
                assert at.endswith("/action") or "metadata" in at or "quota" in at, (at, body)
            else:
                assert fault(reply)


async def test_ids_and_names_in_the_path(face: Face) -> None:
    for path, method, *_ in ROUTES:
        for word in WORDS if "{" in path else ():
            at = path.replace("{id}", word).replace("{key}", word)
            body = {"os-extend": {"new_size": 2}} if method != "GET" else None
            reply = await face(method, at, body, "alice", 70)
            if reply.status >= 300:
                assert fault(reply)


QUERIES = [
    "limit=-1",
    "limit=x",
    "limit=1e3",
    "limit=" + "9" * 50,
    "offset=-1",
    "offset=" + "9" * 30,
    "sort=moon",
    "sort=name:up",
    "sort=name&sort_key=name",
    "sort_dir=sideways",
    "bootable=maybe",
    "metadata=x",
    "metadata={'a': 1}",
    "metadata=" + "(" * 200,
    "name=%00",
    "created_at=yesterday",
    "created_at=gt:9999-99-99",
    "with_count=perhaps",
    "size=x",
    "whatever=1",
    "name~=" + "x" * 300,
]


async def test_queries(face: Face) -> None:
    for query, path in product(QUERIES, ("/v3/volumes", "/v3/volumes/detail", "/v3/volumes/summary")):
        assert fault(await face("GET", f"{path}?{query}", version=70)), query


async def test_markers(face: Face) -> None:
    for marker in (ID, "x", "%27"):
        (await face("GET", f"/v3/volumes?marker={marker}")).expect(404)
    volume = await face.made()
    (await face("GET", f"/v3/volumes?marker={volume['id']}", who="bob")).expect(404)


async def test_unknown_paths_and_methods(face: Face) -> None:
    for path in ("/v2/volumes", "/v3/nothing", "/v3/volumes/x/y/z", "/v3/alpha", "/v3//volumes"):
        assert fault((await face("GET", path)).expect(404))
    for method in ("PATCH", "DELETE"):
        assert fault((await face(method, "/v3/volumes")).expect(405))


async def test_percent_and_underscore_are_no_patterns(face: Face) -> None:
    await face.made(name="100%")
    await face.made(name="a_b")
    await face.made(name="axb")
    for text, expected in (("%25", ["100%"]), ("_", ["a_b"]), ("x", ["axb"])):
        found = (await face("GET", f"/v3/volumes?name~={text}", version=34)).expect(200).json["volumes"]
        assert [each["name"] for each in found] == expected


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
_fields = st.sampled_from(
    [
        "size",
        "name",
        "description",
        "metadata",
        "imageRef",
        "source_volid",
        "volume_type",
        "availability_zone",
    ]
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(_fields, _json, max_size=4), version=st.integers(0, 70))
def test_any_volume(values: dict[str, Any], version: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Answered with a volume, or with a refusal."""
    _Any.ask(tmp_path_factory, json.dumps({"volume": values}).encode(), version)


class _Any:
    """A face in a loop of its own, made once."""

    face: Face | None = None
    loop: Any = None

    @classmethod
    def ask(cls, directories: pytest.TempPathFactory, body: bytes, version: int) -> None:
        import asyncio

        if cls.face is None:
            cls.loop = asyncio.new_event_loop()
            cls.face = cls.loop.run_until_complete(cls.made(directories.mktemp("face")))
        reply = cls.loop.run_until_complete(cls.face("POST", "/v3/volumes", body, version=version))
        assert reply.status == 202 or fault(reply)

    @classmethod
    async def made(cls, directory: Path) -> Face:
        from kilonova.clock import SystemClock
        from kilonova.db.schema import bring_up
        from kilonova.db.sqlite import SqliteDatabase

        db = SqliteDatabase(directory / "db", SystemClock())
        await bring_up(db)
        face = Face(db, directory / "volumes")
        await face.service.recover()
        return face


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Any:
    yield
    if _Any.face is not None:
        _Any.loop.run_until_complete(_Any.face.service.close())
        _Any.loop.run_until_complete(_Any.face.service.db.close())
        _Any.loop.close()
