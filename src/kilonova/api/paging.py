"""Pages of lists: ``limit``, ``marker``, and the link to the next page."""

from __future__ import annotations

import re
from urllib.parse import urlencode

from kilonova.api.query import Query
from kilonova.errors import Invalid

LARGEST = 2**63 - 1
LONGEST = 20  # digits; more are LARGEST too

_DIGITS = re.compile(r"[0-9]+\Z")


def whole_number(name: str, text: str) -> int:
    """A number from 0 up.  Raises Invalid, as Nova's words are."""
    if not _DIGITS.match(text):
        raise Invalid(
            f"Invalid input for query parameters {name}. Value: {text[:80]}. "
            "It must be an integer that is not negative."
        )
    return min(int(text.lstrip("0")[:LONGEST] or "0"), LARGEST)


def page_of(query: Query, max_limit: int) -> tuple[int, str | None]:
    """The size of the page (at most ``max_limit``) and the marker after which it begins.

    ``limit=0`` gives no entries, as in Nova.  Raises Invalid.
    """
    text = query.last("limit")
    limit = max_limit if text is None else min(whole_number("limit", text), max_limit)
    return limit, query.last("marker")


def next_link(url: str, query: Query, limit: int, last_id: str) -> list[dict[str, str]]:
    """The list with the one link to the page after ``last_id``.

    ``url`` is the request's own address, without its query.
    """
    pairs = [(name, value) for name, value in query.pairs if name not in ("marker", "limit")]
    if query.last("limit") is not None:
        pairs.append(("limit", str(limit)))
    pairs.append(("marker", last_id))
    return [{"rel": "next", "href": f"{url}?{urlencode(pairs)}"}]
