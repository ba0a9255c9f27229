"""Query strings: keys may be repeated, and from some microversion on unknown ones are refused."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

from kilonova.api.shape import Span
from kilonova.errors import Invalid

MAX_FIELDS = 1000


class Query:
    """The keys and values of a query string, in order."""

    __slots__ = ("_values", "pairs")

    def __init__(self, raw: bytes = b"") -> None:
        """Raises Invalid for a text that is not UTF-8 or has NULs."""
        self.pairs: list[tuple[str, str]] = []
        self._values: dict[str, list[str]] = {}
        if not raw:
            return
        try:
            self.pairs = parse_qsl(
                raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
            )
        except UnicodeError as error:
            raise Invalid("Query string is not UTF-8 encoded") from error
        except ValueError as error:
            raise Invalid(f"Query string has more than {MAX_FIELDS} keys.") from error
        for key, value in self.pairs:
            if "\0" in key or "\0" in value:
                raise Invalid("Query string must not contain NUL characters.")
            self._values.setdefault(key, []).append(value)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __bool__(self) -> bool:
        return bool(self._values)

    def last(self, key: str) -> str | None:
        """The value of a key; the last one if it is repeated."""
        values = self._values.get(key)
        return values[-1] if values else None

    def every(self, key: str) -> list[str]:
        """All values of a key, in order."""
        return self._values.get(key, [])

    def keys(self) -> list[str]:
        return list(self._values)

    def only(self, known: frozenset[str]) -> None:
        """Raises Invalid if there is any other key."""
        unknown = [key for key in self._values if key not in known]
        if unknown:
            names = ", ".join(f"'{name}'" for name in sorted(unknown))
            were = "was" if len(unknown) == 1 else "were"
            raise Invalid(f"Additional properties are not allowed ({names} {were} unexpected)")


NO_QUERY = Query()


class Keys:
    """Which query keys a route knows, each in its microversions, and from when on others are refused.

    Keys({"limit": Span(), "tags": since(26)}, strict_since=75)
    """

    def __init__(self, known: Mapping[str, Span] | None = None, *, strict_since: int | None = 102) -> None:
        self.known = dict(known or {})
        self.strict_since = strict_since
        self._at: dict[int, frozenset[str]] = {}

    def at(self, version: int) -> frozenset[str]:
        """The keys that exist in a microversion."""
        found = self._at.get(version)
        if found is None:
            known = frozenset(key for key, span in self.known.items() if version in span)
            found = self._at[version] = known
        return found

    def check(self, query: Query, version: int) -> None:
        """Raises Invalid for an unknown key where those are refused."""
        if query and self.strict_since is not None and version >= self.strict_since:
            query.only(self.at(version))


NO_KEYS = Keys()
"""Of most routes that show something: no key is known, and from 2.102 on any is refused."""
