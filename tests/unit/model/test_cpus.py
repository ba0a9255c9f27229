from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.model.cpus import LARGEST, format_cpus, parse_cpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", {0}),
        ("0-3", {0, 1, 2, 3}),
        ("0-3,^2", {0, 1, 3}),
        ("^1-2, 0-4 ,8", {0, 3, 4, 8}),
        ("5,5", {5}),
        ("^3", set()),
    ],
)
def test_sets_of_cpus_are_read(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "-1", "3-2", "1--2", "0,,1", "^", f"0-{LARGEST + 1}", "1 2", "٣"]
)
def test_what_is_no_set_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_cpus(text)


@given(st.frozensets(st.integers(0, 200), min_size=1))
def test_what_is_written_is_read_again(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


def test_ranges_are_written_as_short_as_can_be() -> None:
    assert format_cpus([3, 1, 2, 7, 9, 8]) == "1-3,7-9"
    assert format_cpus([]) == ""
