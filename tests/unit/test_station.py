"""What is made of the lines of a ping."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.testing.lab.station import pings


def lines(answered: set[int], count: int = 200) -> list[dict[str, Any]]:
    """Fifty pings a second, each of them answered after 5 ms if at all."""
    found: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        found.append({"at": number * 0.02, "sent": number})
        if number in answered:
            found.append({"at": number * 0.02 + 0.005, "answered": number})
    return found


def test_what_was_lost_between_answers_counts() -> None:
    seen = pings(lines(set(range(1, 201)) - {60, 61, 62}))
    assert (seen.lost, seen.milliseconds) == (3, 80)
    assert seen.began == pytest.approx(59 * 0.02 + 0.005)


def test_what_was_sent_before_the_first_answer_does_not_count() -> None:
    seen = pings(lines(set(range(50, 201))))
    assert (seen.lost, seen.milliseconds) == (0, 20)
    assert seen.sent == 150 - 50 + 1  # and nothing of the last second


def test_nobody_who_never_answers_looks_well() -> None:
    seen = pings(lines(set()))
    assert seen.lost == seen.sent == 149
