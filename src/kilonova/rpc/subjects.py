"""Names on the bus.  The name of a host is a part of a subject, so that the bus itself can keep an agent
from hearing, or speaking as, another one.

``PREFIX.host.HOST.SESSION.VERB``  to an agent; SESSION is one life of it, so that of two agents under one
                                   name only the one that reported last is spoken to
``PREFIX.from.HOST.VERB``          from an agent to the controllers, one of which hears it
``PREFIX.inbox.HOST.>``            answers to an agent, and ``PREFIX.inbox.controllers.>`` to controllers
"""

from __future__ import annotations

import functools
import re

from kilonova.errors import Invalid

CONTROLLERS = "controllers"  # also the queue group in which they listen

_PLAIN = re.compile(r"[A-Za-z0-9_-]")
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ESCAPE = re.compile(r"=([0-9A-F]{2})")


@functools.lru_cache(maxsize=65_536)
def token(name: str) -> str:
    """A name as one part of a subject: what is not a letter, a digit, ``-`` or ``_`` becomes ``=XX``.

    Raises Invalid for an empty one and for one that is longer than 255 bytes.
    """
    if not 0 < len(name.encode()) <= 255:
        raise Invalid("The name of a host is 1 to 255 bytes long.")
    return "".join(
        each if _PLAIN.fullmatch(each) else "".join(f"={octet:02X}" for octet in each.encode())
        for each in name
    )


def name_of(part: str) -> str:
    """The reverse of ``token``.  Raises Invalid for what it would not have made."""
    try:
        name = _unescaped(part)
    except UnicodeDecodeError:
        name = ""
    if not name or token(name) != part:
        raise Invalid(f"'{part}' is no name of a host.")
    return name


def _unescaped(part: str) -> str:
    pieces = _ESCAPE.split(part)
    octets = b"".join(
        bytes([int(piece, 16)]) if index % 2 else piece.encode() for index, piece in enumerate(pieces)
    )
    return octets.decode()


def checked_session(session: str) -> str:
    """Raises Invalid for what an agent cannot call one life of itself: it is a part of subjects as it is."""
    if not _SESSION.fullmatch(session):
        raise Invalid("The session of an agent is 1 to 64 letters, digits, '-' and '_'.")
    return session


def to_host(prefix: str, host: str, session: str, verb: str) -> str:
    return f"{prefix}.host.{token(host)}.{session}.{verb}"


def from_host(prefix: str, host: str, verb: str) -> str:
    return f"{prefix}.from.{token(host)}.{verb}"


def from_anybody(prefix: str) -> str:
    """What controllers listen to."""
    return f"{prefix}.from.*.*"


def inbox_of_any(prefix: str) -> str:
    """The inboxes of all hosts, for who is many of them."""
    return f"{prefix}.inbox.*"


def inbox(prefix: str, whose: str) -> str:
    """Where the answers to ``whose`` questions come in: a host's name, or CONTROLLERS."""
    return f"{prefix}.inbox.{whose if whose == CONTROLLERS else token(whose)}"
