"""A stream of JSON objects, cut anywhere."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.l2agent.jsonstream import JsonStream

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from(['"', "\\", '\\"', "{", "}}", '{"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text(), VALUES, max_size=4)


@given(
    st.lists(st.tuples(OBJECTS, st.sampled_from(["", " ", "\n\t "]), st.booleans()), max_size=6),
    st.data(),
)
def test_what_goes_in_comes_out_however_it_is_cut(
    parts: list[tuple[dict, str, bool]], data: st.DataObject
) -> None:
    text = b"".join(
        space.encode() + json.dumps(value, ensure_ascii=plain).encode("utf-8", "surrogatepass")
        for value, space, plain in parts
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    stream = JsonStream()
    found = [
        each
        for begin, end in itertools.pairwise([0, *cuts, len(text)])
        for each in stream.feed(text[begin:end])
    ]
    assert [json.loads(each.decode("utf-8", "surrogatepass")) for each in found] == [
        value for value, _, _ in parts
    ]


@given(OBJECTS)
def test_an_object_comes_as_soon_as_it_is_whole(value: dict) -> None:
    text = json.dumps(value).encode()
    stream = JsonStream()
    for position in range(len(text) - 1):
        assert stream.feed(text[position : position + 1]) == []
    assert stream.feed(text[-1:]) == [text]


@pytest.mark.parametrize("wrong", [b"x", b"}", b"[1]", b'"{}"', b"{}x", b"{} }", b"\\{}", b"1{}", b"\xff"])
def test_what_is_no_stream_of_objects_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="no object begins with"):
        JsonStream().feed(wrong)


def test_an_object_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kilonova.l2agent.jsonstream._MOST", 1000)
    stream = JsonStream()
    with pytest.raises(ValueError, match="without an end"):
        for _ in range(1001):
            stream.feed(b"{")


@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_are_objects_or_an_error_of_value(data: bytes, size: int) -> None:
    stream = JsonStream()
    try:
        for begin in range(0, len(data), size):
            for each in stream.feed(data[begin : begin + size]):
                assert each.strip().startswith(b"{") and each.endswith(b"}")
    except ValueError:
        pass
