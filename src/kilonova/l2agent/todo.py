"""What the agent has to look at: kept once, taken all at once, and again later when it failed."""

from __future__ import annotations

import asyncio

from kilonova.clock import SECOND, Clock, set_within

Key = tuple[str, str]
"""What kind of thing, and which one."""

EVERYTHING: Key = ("everything", "")
_FIRST, _LONGEST = 0.2, 30.0


class Todo:
    """Keys wait here until ``take``.  Of failed ones the wait doubles with each failure."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now: set[Key] = set()
        self._later: dict[Key, int] = {}  # when it is due
        self._failures: dict[Key, int] = {}
        self._woken = asyncio.Event()
        self._compared = clock.now()  # when everything was taken last

    def add(self, kind: str, thing: str) -> None:
        self._now.add((kind, thing))
        self._woken.set()

    def everything(self) -> None:
        self.add(*EVERYTHING)

    def later(self, key: Key, wait: float) -> None:
        """This comes in ``wait`` seconds."""
        self._later[key] = self._clock.now() + int(wait * SECOND)
        self._woken.set()

    def again(self, keys: set[Key]) -> None:
        """These have failed; they come again later."""
        for key in keys:
            count = self._failures[key] = self._failures.get(key, 0) + 1
            self.later(key, min(_FIRST * 2 ** min(count - 1, 20), _LONGEST))

    def hurry(self) -> None:
        """What they failed of may be over: all that wait come now."""
        self._now |= self._later.keys()
        self._later.clear()
        self._woken.set()

    def done(self, keys: set[Key]) -> None:
        for key in keys:
            self._failures.pop(key, None)

    async def take(self, interval: float) -> set[Key]:
        """What is to be done now; everything if that was not taken for ``interval`` seconds."""
        while True:
            now = self._clock.now()
            deadline = self._compared + int(interval * SECOND)
            for key in [key for key, due in self._later.items() if due <= now]:
                del self._later[key]
                self._now.add(key)
            if now >= deadline:
                self._now.add(EVERYTHING)
            if self._now:
                keys, self._now = self._now, set()
                if EVERYTHING in keys:
                    self._compared = now
                return keys
            self._woken.clear()
            await set_within(
                (min([deadline, *self._later.values()]) - now) / SECOND, self._clock, self._woken
            )
