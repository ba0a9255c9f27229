"""Bodies and queries that nobody means well with, and what must never be seen of secrets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import string
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from kilonova import log as logs
from kilonova.db.engine import Tx
from kilonova.db.tables import load_all
from kilonova.services.identity import api, api_catalog, bodies
from tests.api.identity.face import Face, fresh, in_project, is_fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=120)

BODIES = (
    *(bodies.UserBody, bodies.ProjectBody, bodies.DomainBody, bodies.GroupBody, bodies.RoleBody),
    *(api_catalog.RegionBody, api_catalog.ServiceBody, api_catalog.EndpointBody),
)
CREATES = ("user", "project", "domain", "group", "role", "region", "service", "endpoint")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"user"', 400),
        (b"{}", 400),
        (b'{"user":[]}', 400),
        (b'{"user":null}', 400),
        (b'{"user":{"name":"x","name":"y"}}', 400),
        (b'{"user":{"name":"\xff"}}', 400),
        (b'{"user":{"name":"\\ud800"}}', 400),
        (b'{"user":{"name":"x","x":' + b"[" * 5000 + b"]" * 5000 + b"}}", 400),
        (b'{"user":{"name":"x","x":' + b"[" * 150 + b"]" * 150 + b"}}", 400),
        (b'{"user":{"name":"x","x":1' + b"0" * 400 + b"}}", 400),
        (b'{"user":{"name":"x","x":1e999}}', 400),
        (b'{"user":{"name":"x","x":NaN}}', 400),
        (b'{"user":{"name":"x","x":"' + b"y" * 114_688 + b'"}}', 413),
    ],
)
async def test_broken_bodies(face: Face, body: bytes, status: int) -> None:
    is_fault(await face.call("POST", "/v3/users", body), status)


async def test_invented_attributes_of_every_shape_come_back(face: Face) -> None:
    deep: Any = 1
    for _ in range(90):
        deep = [deep]
    values = {
        "": "",
        "deep": deep,
        "\U0001f511": [None, True, -(2**63), 2**64 - 1, 1.5e300],
        "a.b/c": {"x": {}},
    }
    user = await face.make("user", **values)
    assert {name: user[name] for name in values} == values
    assert await face.get(f"/v3/users/{user['id']}") == {"user": user}


async def test_an_attribute_cannot_pretend_to_be_one_of_ours(face: Face) -> None:
    values = {
        "links": "x",
        "password_hash": "$scrypt$",
        "generation": -5,
        "extra": {"enabled": False},
        "id": "x",
    }
    user = await face.user(**values)
    assert user["id"] != "x" and user["links"]["self"].endswith(user["id"]) and user["enabled"]
    await face.login(user)
    role = await face.make("role", domain={"id": "x"}, options={"immutable": True})
    assert role["options"] == {}
    (await face.call("DELETE", f"/v3/roles/{role['id']}")).expect(204)


_texts = st.text(max_size=12) | st.sampled_from(
    ["default", "Default", "\0", "\ud800", "x" * 300, "../..", "%00"]
)
_leaves = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | _texts
_values = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)
_fields = st.sampled_from(sorted({name for kind in BODIES for name in kind.__struct_fields__}))


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


@given(kind=st.sampled_from(CREATES), values=st.dictionaries(_fields | _texts, _values, max_size=6))
@fuzz
async def test_any_body_makes_something_or_is_refused(face: Face, kind: str, values: dict[str, Any]) -> None:
    reply = await face.call("POST", f"/v3/{kind}s", encoded({kind: values}))
    assert reply.status in (201, 400, 404, 409), reply.content
    if reply.status == 201:
        made = reply.json[kind]
        path = f"/v3/{kind}s/{quote(made['id'], safe='')}"
        assert await face.get(path) == {kind: made}
        changed = await face.call("PATCH", path, encoded({kind: values}))
        assert changed.status in (200, 400, 403, 404, 409), changed.content
        if kind == "domain":
            (await face.call("PATCH", path, {"domain": {"enabled": False}})).expect(200)
        (await face.call("DELETE", path)).expect(204)


@given(
    auth=st.fixed_dictionaries(
        {},
        optional={
            "identity": st.fixed_dictionaries(
                {"methods": st.lists(st.sampled_from(["password", "token"]) | _texts, max_size=3) | _values},
                optional={
                    "password": st.fixed_dictionaries(
                        {}, optional={"user": st.dictionaries(_fields, _values)}
                    )
                    | _values,
                    "token": st.dictionaries(_fields, _values) | _values,
                },
            )
            | _values,
            "scope": st.dictionaries(
                st.sampled_from(["project", "domain", "system", "unscoped"]),
                st.dictionaries(st.sampled_from(["id", "name", "domain", "all"]), _values) | _values,
                max_size=2,
            )
            | _values,
        },
    )
)
@fuzz
async def test_no_request_for_a_token_breaks_it(face: Face, auth: dict[str, Any]) -> None:
    reply = await face.call("POST", "/v3/auth/tokens", encoded({"auth": auth}), "")
    assert is_fault(reply, reply.status) and reply.status in (400, 401)


@given(
    path=st.sampled_from([path for routes in api.ROUTES for path in routes if "{" not in path]),
    query=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *("name", "name__contains", "name__in", "enabled", "domain_id", "limit", "marker"),
                    *("tags", "tags-any", "user.id", "group.id", "scope.project.id", "scope.system"),
                    *("effective", "include_names", "include_subtree", "nocatalog", "sort_key"),
                ]
            )
            | st.text(string.ascii_letters + "%\0&=;+", max_size=8),
            st.text(max_size=8)
            | st.sampled_from(["%00", "%ff", "%ed%a0%80", "9" * 30, "-1", "true", "default"]),
        ),
        max_size=4,
    ),
)
@fuzz
async def test_no_query_breaks_a_list(face: Face, path: str, query: list[tuple[str, str]]) -> None:
    text = "&".join(f"{quote(name, safe='%')}={quote(value, safe='%')}" for name, value in query)
    reply = await face.call("GET", f"{path}?{text}", x_subject_token=face.admin)
    assert reply.status in (200, 400), reply.content


@given(
    path=st.text(string.printable + "\0\u0130\ud7ff", max_size=30),
    method=st.sampled_from(["GET", "PUT", "POST", "DELETE", "X"]),
)
@fuzz
async def test_no_path_breaks_it(face: Face, path: str, method: str) -> None:
    reply = await face.call(method, "/v3/" + quote(path), {"x": {}})
    assert 200 <= reply.status < 500


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """All that is logged, as a process logs it, down to the debug level."""
    root = logging.getLogger()
    level, handlers, stream = root.level, list(root.handlers), io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure(None, debug=True)
    monkeypatch.setattr("kilonova.web.requests.log", structlog.get_logger("kilonova.web"))
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


async def test_secrets_are_in_no_answer_no_log_and_no_row(
    face: Face, written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passwords and tokens, through success, refusal, change and a fault of ours."""
    secrets = [fresh(f"secret-{word}") for word in ("first", "second", "wrong", "third")]
    first, second, wrong, third = secrets
    answers: list[str] = []

    async def call(*arguments: Any, **more: Any) -> Any:
        reply = await face.call(*arguments, **more)
        answers.append(reply.content.decode())
        return reply

    made = await call("POST", "/v3/users", {"user": {"name": fresh("u"), "password": first}})
    user = {**made.json["user"], "password": first}
    where = f"/v3/users/{user['id']}"
    await call("GET", where)
    tokens = [await face.login(user)]
    is_fault(await face.authenticate({**user, "password": wrong}), 401)
    await call("PATCH", where, {"user": {"password": second}})
    await call("PATCH", where, {"user": {"password": [second]}})
    await call("POST", where + "/password", {"user": {"original_password": second, "password": third}})
    await call("POST", where + "/password", {"user": {"original_password": wrong, "password": [third]}})
    tokens.append(await face.login({**user, "password": third}))
    await call("DELETE", "/v3/auth/tokens", None, tokens[1], x_subject_token=tokens[1])

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr("kilonova.services.identity.login.stand", broken)
        answers.append((await face.authenticate({**user, "password": third})).expect(500).content.decode())
        patch.setattr("kilonova.db.identity_tokens.standing", broken)
        (await call("GET", where, None, tokens[0])).expect(500)
    assert "a fault of ours" in written.getvalue(), "it was logged"

    def rows(tx: Tx) -> str:
        return repr([tx.all(select(table)) for table in load_all().sorted_tables])

    kept = await face.identity.db.read(rows)
    assert "$scrypt$ln=" in kept
    told = written.getvalue() + "".join(answers)
    for secret in [*secrets, *tokens]:
        assert secret not in told and secret not in kept
    assert "$scrypt$" not in told and "a fault of ours" not in "".join(answers)


async def test_two_who_make_the_same_thing_at_once(face: Face) -> None:
    for kind in ("user", "project", "domain", "group", "role"):
        body = {kind: {"name": fresh(kind)}}
        replies = await asyncio.gather(*(face.call("POST", f"/v3/{kind}s", body) for _ in range(8)))
        assert sorted(each.status for each in replies) == [201] + [409] * 7


async def test_changes_at_once_are_all_kept(face: Face) -> None:
    """Eight tags, each added by a call that reads and writes the whole record."""
    project = (await face.make("project"))["id"]
    paths = [f"/v3/projects/{project}/tags/t{n}" for n in range(8)]
    replies = await asyncio.gather(*(face.call("PUT", path) for path in paths))
    assert [each.status for each in replies] == [201] * 8
    assert len((await face.get(f"/v3/projects/{project}/tags"))["tags"]) == 8


async def test_a_login_while_the_user_is_deleted(face: Face) -> None:
    for _ in range(10):
        user = await face.user()
        scope = in_project(user["project_id"])
        logins = [face.authenticate(user, scope) for _ in range(4)]
        deletion = face.call("DELETE", f"/v3/users/{user['id']}")
        *replies, deleted = await asyncio.gather(*logins, deletion)
        deleted.expect(204)
        for reply in replies:
            assert reply.status in (201, 401)
            if reply.status == 201:
                assert not await face.works(reply.headers["x-subject-token"])
