"""Regular expressions in filters, which run over every server of a list.

Only what Python and PostgreSQL understand alike is taken, and nothing whose cost explodes: no repeated
groups, no look-around, no back-references, few repetitions.
"""

from __future__ import annotations

import re

from kilonova.errors import Invalid

MAX_LENGTH = 255
MAX_REPEATS = 3
MAX_OPTIONAL = 5

_SPECIAL = frozenset("\\^$.|?*+()[]{}")
_BRACES = re.compile(r"\{(\d{1,3})(,(\d{0,3}))?\}")
_CLASSES = frozenset("dDwWsS")


def is_plain(pattern: str) -> bool:
    """Whether a pattern is nothing but the text to be found."""
    return _SPECIAL.isdisjoint(pattern)


def check(pattern: str) -> str:
    """The pattern.  Raises Invalid for one that cannot, or should not, be searched for."""
    if len(pattern) > MAX_LENGTH:
        raise Invalid(f"A pattern has at most {MAX_LENGTH} characters.")
    if is_plain(pattern):
        return pattern
    _Scan(pattern).run()
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise Invalid(f"'{pattern}' is not a regular expression: {error}.") from error
    return pattern


class _Scan:
    """One walk over a pattern."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.repeats = 0
        self.optional = 0
        self.before = ""  # what a quantifier would repeat: "", an "atom", a "group" or a "repeat"

    def run(self) -> None:
        while self.at < len(self.pattern):
            character = self.pattern[self.at]
            if character == "\\":
                self._escape()
                self.before = "atom"
            elif character == "[":
                self._set()
                self.before = "atom"
            elif character in "*+?{":
                self._repeat(character)
            elif character == "(":
                if self.pattern.startswith("(?", self.at) and not self.pattern.startswith("(?:", self.at):
                    self._refuse("look-around and options are not supported")
                self.at += 3 if self.pattern.startswith("(?:", self.at) else 1
                self.before = ""
            else:
                self.at += 1
                self.before = {")": "group", "|": "", "^": "", "$": ""}.get(character, "atom")

    def _refuse(self, reason: str) -> None:
        raise Invalid(f"The pattern '{self.pattern}' is refused: {reason}.")

    def _escape(self) -> None:
        following = self.pattern[self.at + 1 : self.at + 2]
        if not following or (following.isalnum() and following not in _CLASSES):
            self._refuse(f"\\{following} is not supported")
        self.at += 2

    def _set(self) -> None:
        self.at += 1
        if self.pattern[self.at : self.at + 1] == "^":
            self.at += 1
        first = True
        while self.at < len(self.pattern):
            character = self.pattern[self.at]
            if character == "]" and not first:
                self.at += 1
                return
            if character == "[" or self.pattern[self.at : self.at + 2] in ("--", "&&", "~~", "||"):
                self._refuse("sets within sets are not supported")
            if character == "\\":
                self._escape()
            else:
                self.at += 1
            first = False
        self._refuse("a set is not closed")

    def _repeat(self, character: str) -> None:
        if self.before == "repeat" and character == "?":  # reluctant
            self.at += 1
            self.before = "repeated"
            return
        if self.before not in ("atom", "group"):
            self._refuse("nothing is there to repeat")
        length = 1
        if character == "{":
            length = self._braces()
        if character == "?":
            self.optional += 1
        else:
            self.repeats += 1
            if self.before == "group":
                self._refuse("a group must not be repeated")
        if self.repeats > MAX_REPEATS or self.optional > MAX_OPTIONAL:
            self._refuse("it has too many repetitions")
        self.at += length
        self.before = "repeat"

    def _braces(self) -> int:
        found = _BRACES.match(self.pattern, self.at)
        if found is None:
            self._refuse("a { must be escaped or be a repetition like {1,3}")
            return 0
        least, most = int(found[1]), int(found[3] or found[1])
        if not least <= most <= MAX_LENGTH:
            self._refuse("a repetition is at most 255 times")
        return len(found[0])
