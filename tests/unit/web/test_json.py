"""The JSON reader: what is no JSON object that we can keep is refused, and nothing breaks it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request

from kilonova.errors import Invalid, TooLarge
from kilonova.web import storable
from kilonova.web.json import MAX_BODY, JsonResponse, encoder, parse_object, read_body, read_object


def nested(depth: int, open_: str = "[", close: str = "]") -> bytes:
    return b'{"a":' + open_.encode() * depth + b"1" + close.encode() * depth + b"}"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":1}x', "not JSON"),
        (b'{"a":1,}', "not JSON"),
        (b"{'a':1}", "not JSON"),
        (b'{"a":01}', "not JSON"),
        (b'{"a":"\x01"}', "not JSON"),
        (b'{"a":"\\x"}', "not JSON"),
        (b'{"a":"\xff"}', "not JSON"),
        (b'\xef\xbb\xbf{"a":1}', "not JSON"),
        ('{"a":1}'.encode("utf-16"), "not JSON"),
        (b'{"a":"\xed\xa0\x80"}', "not JSON"),
        (b"\x1f\x8b\x08\x00gzip", "not JSON"),
        (b"[]", "object is expected"),
        (b"null", "object is expected"),
        (b'"a"', "object is expected"),
        (b"12", "object is expected"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":1,"a":2}', "'a' stands twice"),
        (b'{"x":[{"b":1,"\\u0062":1}]}', "'b' stands twice"),
        (b'{"a":"\\u0000"}', "NUL"),
        (b'{"a":{"\\ud800":1}}', "surrogate"),
        (b'{"a":["\\udfff\\ud800"]}', "surrogate"),
        (b'{"a":18446744073709551616}', "too large"),
        (b'{"a":-9223372036854775809}', "too large"),
        (b'{"a":' + b"9" * 5000 + b"}", "too large"),
        (b'{"a":1e400}', "too large"),
        (b'{"a":-' + b"9" * 400 + b".5}", "too large"),
        (nested(storable.MAX_DEPTH + 1), "deeper"),
        (nested(storable.MAX_DEPTH, '{"a":', "}"), "deeper"),
        (nested(50_000), "not JSON"),
        (b'{"a":' * 18_000, "not JSON"),
    ],
)
def test_what_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        parse_object(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b" {} ", {}),
        (b'{"a":18446744073709551615,"b":-9223372036854775808}', {"a": 2**64 - 1, "b": -(2**63)}),
        (b'{"a":1e300,"b":-0.5}', {"a": 1e300, "b": -0.5}),
        (b'{"a":"\\ud83d\\ude00 \xf0\x9f\x98\x80"}', {"a": "\U0001f600 \U0001f600"}),
        (b'{"a":{"a":1},"b":{"a":2}}', {"a": {"a": 1}, "b": {"a": 2}}),
        (b'{"A":1,"a":2}', {"A": 1, "a": 2}),
        (b'{"__proto__":null}', {"__proto__": None}),
        (b'{"a":[' + b"[]," * 500 + b"[]]}", {"a": [[]] * 501}),
    ],
)
def test_what_is_read(body: bytes, value: object) -> None:
    assert parse_object(body) == value


def test_the_deepest_that_is_read_is_written_too() -> None:
    found = parse_object(nested(storable.MAX_DEPTH - 1))
    assert parse_object(encoder.encode(found)) == found


_texts = st.text(st.characters(blacklist_categories=(), blacklist_characters=""), max_size=20)
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_texts, inner, max_size=4),
    max_leaves=20,
)


def keepable(value: Any) -> bool:
    if isinstance(value, str):
        return storable.is_storable(value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    if isinstance(value, dict):
        return all(keepable(each) for pair in value.items() for each in pair)
    return all(map(keepable, value)) if isinstance(value, list) else True


@given(st.dictionaries(_texts, _values, max_size=4), st.booleans())
@example({"\ud800": 1}, False)
def test_every_object_is_kept_as_it_is_or_refused(value: dict[str, Any], ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    if keepable(value):
        found = parse_object(body)
        assert found == value
        assert json.loads(encoder.encode(found)) == value
    else:
        with pytest.raises(Invalid):
            parse_object(body)


@given(
    st.binary(max_size=200)
    | st.text('{}[]",:0123456789eE+-.\\u tfn"', max_size=80).map(str.encode)
    | st.dictionaries(_texts, _values, min_size=1, max_size=3).flatmap(
        lambda value: st.integers(0, 400).map(lambda end: json.dumps(value).encode()[:end])
    )
)
@example(b'{"a":1e-400}')
@example(b'{"\\ud800":1,"\\ud800":2}')
@example(b'{"a":-0}')
def test_no_bytes_break_the_reader(body: bytes) -> None:
    try:
        found = parse_object(body)
    except Invalid as error:
        assert str(error).startswith("Malformed request body")
        assert encoder.encode(str(error)), "it can be told"
    else:
        assert keepable(found)
        assert not any(math.isinf(each) for each in found.values() if isinstance(each, float))
        assert isinstance(encoder.encode(found), bytes)


def request(pieces: list[bytes], **headers: str) -> tuple[Request, list[bytes]]:
    waiting = list(pieces)

    async def receive() -> dict[str, Any]:
        piece = waiting.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": pairs}, receive), waiting


async def test_a_body_is_read_up_to_its_limit() -> None:
    whole, _ = request([b'{"a":"', b"x" * (MAX_BODY - 8), b'"}'])
    assert len((await read_object(whole))["a"]) == MAX_BODY - 8
    above, waiting = request([b"x" * MAX_BODY, b"y", b"z" * 1000])
    with pytest.raises(TooLarge):
        await read_body(above)
    assert waiting == [b"z" * 1000], "nothing is read beyond the limit"


@pytest.mark.parametrize("length", ["114689", "9" * 30, "9" * 10_000])
async def test_a_body_that_is_announced_too_large_is_not_read(length: str) -> None:
    announced, waiting = request([b"{}"], content_length=length)
    with pytest.raises(TooLarge) as refused:
        await read_body(announced)
    assert waiting == [b"{}"]
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("length", ["\xb2", "-1", "abc", ""])
async def test_a_length_that_is_no_number_is_not_believed(length: str) -> None:
    announced, _ = request([b"{}"], content_length=length)
    assert await read_body(announced) == b"{}"


def test_answers_are_json() -> None:
    response = JsonResponse({"a": ["\u00e9", None, 1.5]}, 202)
    assert (response.status_code, response.body) == (202, '{"a":["\u00e9",null,1.5]}'.encode())
    assert response.headers["content-type"] == "application/json"
    assert JsonResponse(b"[1]").body == b"[1]"
