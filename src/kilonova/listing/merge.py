"""One ordered list out of several cells, each of which is asked in small batches and may be down.

Every source gives its records sorted already; they are merged lazily: a source's next batch is fetched when
its last record is taken and more are wanted.  Knows nothing of databases or servers.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import structlog

from kilonova.clock import Clock
from kilonova.errors import Unreachable

log = structlog.get_logger("kilonova.listing")

Values = tuple[Any, ...]
"""What a record has for each sort key, in their order.  Never None, and of one type for each key."""

TIME_LIMIT = 60.0  # seconds that a cell has for all of its part of a list, as in Nova

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class DidNotRespond(Unreachable):
    """A cell was not done within its time."""


class Start(msgspec.Struct, frozen=True):
    """Where a batch begins: after the record with these values, or at them."""

    values: Values
    inclusive: bool = False


class Marker(msgspec.Struct, frozen=True):
    """The record after which the whole list begins: its values, and the source that has it."""

    values: Values
    source: str

    def start_of(self, source: str) -> Start:
        """In its own cell the marker has been seen; another cell may have one with the same values."""
        return Start(self.values, inclusive=source != self.source)


class Source(Protocol[T_co]):
    """One cell's sorted records."""

    @property
    def name(self) -> str: ...

    async def batch(self, start: Start | None, size: int | None) -> Sequence[T_co]:
        """The next records from ``start`` on, at most ``size`` (None: all).

        Raises anything for a cell that cannot answer.
        """


class Merged(Generic[T]):
    """``failed`` has the error of every source that could not be read to where the list ends, by its name,
    also if it has given records before; ``responded`` are the others."""

    def __init__(self, records: list[T], failed: dict[str, Exception], responded: tuple[str, ...]) -> None:
        self.records = records
        self.failed = failed
        self.responded = responded

    @property
    def timed_out(self) -> tuple[str, ...]:
        return tuple(name for name, error in self.failed.items() if isinstance(error, DidNotRespond))


class Falling:
    """A text that sorts the other way round."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: Falling) -> bool:
        return bool(other.value < self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Falling) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)


def rank(values: Values, descending: Sequence[bool]) -> tuple[Any, ...]:
    """What compares as the records are to be sorted: the first key that differs decides."""
    return tuple(
        value if not down else -value if isinstance(value, (int, float)) else Falling(value)
        for value, down in zip(values, descending, strict=True)
    )


class _Stream(Generic[T]):
    """What has been read of one source."""

    def __init__(self, source: Source[T], start: Start | None) -> None:
        self.source = source
        self.start = start
        self.error: Exception | None = None
        self._records: Sequence[T] = ()
        self._at = 0
        self._ended = False

    @property
    def empty(self) -> bool:
        return self._at == len(self._records)

    @property
    def first(self) -> T:
        return self._records[self._at]

    def take(self) -> T:
        record = self._records[self._at]
        self._at += 1
        return record

    async def fill(self, size: int | None, alarm: asyncio.Future[Any]) -> None:
        """Read on, unless that was all; a source that fails or is late ends here."""
        if self._ended:
            return
        reading = asyncio.ensure_future(self.source.batch(self.start, size))
        try:
            await asyncio.wait({reading, alarm}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise DidNotRespond(f"The cell {self.source.name} did not respond in time.")
            self._records, self._at = reading.result(), 0
            self._ended = size is None or len(self._records) < size
        except Exception as error:  # noqa: BLE001 - it is this cell's, and the others go on
            self._records, self._at, self._ended = (), 0, True
            self.error = error
        finally:
            reading.cancel()


class Merge(Generic[T]):
    """How sources are merged.

    ``values_of`` gives a record's values for the sort keys, ``descending`` the directions.  ``limit`` None or
    0: no limit.  ``batch`` is how many records a cell is asked for at a time (None: as many as are wanted).
    ``tolerant``: sources that fail are left out; otherwise they are an error.  ``takes`` is asked of
    each record, and its source's name, when its turn comes: others are left out.
    """

    def __init__(
        self,
        values_of: Callable[[T], Values],
        descending: Sequence[bool],
        *,
        limit: int | None,
        batch: int | None,
        clock: Clock,
        time_limit: float = TIME_LIMIT,
        tolerant: bool = True,
        takes: Callable[[str, T], bool] = lambda source, record: True,
    ) -> None:
        self._takes = takes
        self._values_of = values_of
        self._descending = tuple(descending)
        self._limit = limit or None
        self._batch = batch
        self._clock = clock
        self._time_limit = time_limit
        self._tolerant = tolerant

    async def run(self, sources: Sequence[Source[T]], marker: Marker | None = None) -> Merged[T]:
        """The list after ``marker``.  Raises Unreachable, naming the cell, if one fails and may not."""
        streams = [
            _Stream(source, None if marker is None else marker.start_of(source.name)) for source in sources
        ]
        alarm = asyncio.ensure_future(self._clock.sleep(self._time_limit))
        try:
            # All at once, before the first record is taken: who is down is known whatever the limit is.
            await asyncio.gather(*(self._fill(stream, self._size(0), alarm) for stream in streams))
            records = await self._merged(streams, alarm)
        finally:
            alarm.cancel()
        failed = {stream.source.name: stream.error for stream in streams if stream.error is not None}
        responded = tuple(source.name for source in sources if source.name not in failed)
        return Merged(records, failed, responded)

    def _size(self, taken: int) -> int | None:
        wanted = None if self._limit is None else self._limit - taken
        if self._batch is None:
            return wanted
        return self._batch if wanted is None else min(self._batch, wanted)

    async def _merged(self, streams: list[_Stream[T]], alarm: asyncio.Future[Any]) -> list[T]:
        records: list[T] = []
        heap = [(self._rank(stream), number) for number, stream in enumerate(streams) if not stream.empty]
        heapq.heapify(heap)
        while heap and len(records) != self._limit:
            number = heap[0][1]
            stream = streams[number]
            record = stream.take()
            if self._takes(stream.source.name, record):
                records.append(record)
            if stream.empty and len(records) != self._limit:
                stream.start = Start(self._values_of(record))
                await self._fill(stream, self._size(len(records)), alarm)
            if stream.empty:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (self._rank(stream), number))
        return records

    def _rank(self, stream: _Stream[T]) -> tuple[Any, ...]:
        return rank(self._values_of(stream.first), self._descending)

    async def _fill(self, stream: _Stream[T], size: int | None, alarm: asyncio.Future[Any]) -> None:
        await stream.fill(size, alarm)
        if stream.error is None:
            return
        if not self._tolerant:
            log.error("a list fails for a cell", cell=stream.source.name, error=str(stream.error))
            raise Unreachable(  # who asks need not know where databases are
                f"The cell {stream.source.name} does not respond, and lists without it are not allowed."
            ) from stream.error
        log.warning("a cell is left out of a list", cell=stream.source.name, error=str(stream.error))
