from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Invalid
from kilonova.rpc import subjects

NAMES = st.text(min_size=1, max_size=60).filter(lambda name: _encodable(name) and len(name.encode()) <= 255)


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@given(NAMES)
def test_every_name_is_one_part_of_a_subject_and_comes_back(name: str) -> None:
    part = subjects.token(name)
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", part)
    assert subjects.name_of(part) == name


@given(NAMES, NAMES)
def test_two_names_are_two_parts(one: str, other: str) -> None:
    assert (subjects.token(one) == subjects.token(other)) == (one == other)


@given(st.text(max_size=30))
def test_only_what_token_makes_is_a_name(part: str) -> None:
    try:
        name = subjects.name_of(part)
    except Invalid:
        return
    assert subjects.token(name) == part


@pytest.mark.parametrize("part", ["", "*", ">", "a.b", "=2", "=2e", "=41", "=FF", "a b", "=C3=28", "é"])
def test_no_names(part: str) -> None:
    with pytest.raises(Invalid):
        subjects.name_of(part)


@pytest.mark.parametrize("name", ["", "x" * 256, "é" * 128])
def test_names_that_are_too_short_or_too_long(name: str) -> None:
    with pytest.raises(Invalid, match="1 to 255 bytes"):
        subjects.token(name)


@pytest.mark.parametrize(
    "session", ["", "a.b", "*", ">", "a b", "x\r\nPUB kn.host.b.s.destroy 0", "x" * 65, "é"]
)
def test_a_session_is_one_plain_part(session: str) -> None:
    """It goes into subjects as it is: with more in it an agent could have us speak for it."""
    with pytest.raises(Invalid):
        subjects.checked_session(session)


def test_subjects_by_name() -> None:
    assert subjects.to_host("kn", "a.b", "s1", "start") == "kn.host.a=2Eb.s1.start"
    assert subjects.from_host("kn", "a.b", "hello") == "kn.from.a=2Eb.hello"
    assert subjects.from_anybody("kn") == "kn.from.*.*"
    assert subjects.inbox("kn", "a.b") == "kn.inbox.a=2Eb"
    assert subjects.inbox("kn", subjects.CONTROLLERS) == "kn.inbox.controllers"
    assert subjects.checked_session("0-a_Z") == "0-a_Z"
