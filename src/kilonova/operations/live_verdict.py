"""On which side a guest goes on whose live migration was seen to end badly, or not seen to end at all.

It is concluded from what both hypervisors say, and from nothing else: not from time, not from silence.  The
source is asked before the destination, so a guest that passes between the two looks is seen where it came to.
"""

from __future__ import annotations

import enum

from kilonova.rpc.moves import Presence

HERE = frozenset({Presence.RUNNING, Presence.PAUSED})
GONE = frozenset({Presence.ABSENT, Presence.OFF})
BUSY = HERE | {Presence.LEAVING, Presence.POSTCOPY, Presence.INCOMING}


FENCED = "fenced"
"""Instead of a presence: an operator has declared the host dead, and has seen to it that it is."""


class Verdict(enum.Enum):
    PASSED = "passed"  # it goes on at the destination
    STAYED = "stayed"  # it goes on, or can go on, at the source, and nothing is being sent
    DIED = "died"  # it runs nowhere
    UNKNOWN = "unknown"  # nobody can tell yet


def decide(source: str | None, destination: str | None) -> Verdict:
    """``source`` and ``destination`` are each of `Presence`, FENCED, or None: it could not be asked."""
    if source == FENCED:
        if destination == Presence.INCOMING:  # and nobody is left who could have it go on there
            return Verdict.DIED
        source = Presence.ABSENT
    if destination == FENCED:
        destination = Presence.ABSENT
    if source == Presence.LEFT:
        return Verdict.PASSED if destination not in (Presence.LEFT, Presence.HELD) else Verdict.UNKNOWN
    if destination in HERE:
        # A source that ran it when it was asked, and sent nothing, contradicts that: look again.
        return Verdict.UNKNOWN if source in (HERE | {Presence.INCOMING}) else Verdict.PASSED
    if destination == Presence.OFF:  # defined there for good only when it had come: it went off later
        return Verdict.UNKNOWN if source in BUSY else Verdict.PASSED
    if source in HERE and destination in (Presence.ABSENT, Presence.INCOMING, None):
        return Verdict.STAYED
    if source == Presence.HELD and destination == Presence.ABSENT:
        return Verdict.STAYED
    if source in GONE and destination == Presence.ABSENT:
        return Verdict.DIED
    return Verdict.UNKNOWN
