"""Taking in the data of an image: in large pieces, written and hashed in a thread while more arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from kilonova.errors import Invalid, TooLarge
from kilonova.services.image.files import PIECE, PartFile


class Intake:
    """One upload.  At most two pieces are in memory: one being written, one being filled."""

    def __init__(self, part: PartFile, executor: Executor, limit: int, stall: float) -> None:
        self._part = part
        self._executor = executor
        self._limit = limit
        self._stall = stall
        self._writing: asyncio.Future[None] | None = None

    async def take(self, chunks: AsyncIterator[bytes], declared: int | None) -> None:
        """Write all of ``chunks`` to the part file.

        Raises TooLarge above the limit, Invalid when there are not ``declared`` bytes or when nothing
        comes for ``stall`` seconds, OSError when the file cannot be written, and what ``chunks`` raises.
        """
        if declared is not None and declared > self._limit:
            raise TooLarge(f"The image is too large: at most {self._limit} bytes are allowed.")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._executor, self._part.open)
        pieces: list[bytes] = []
        held = size = 0
        async for chunk in self._in_time(chunks):
            size += len(chunk)
            if size > self._limit:
                raise TooLarge(f"The image is too large: at most {self._limit} bytes are allowed.")
            if declared is not None and size > declared:
                raise Invalid(f"The image has more than the {declared} bytes that were announced.")
            pieces.append(chunk)
            held += len(chunk)
            if held >= PIECE:
                await self._write(pieces)
                pieces, held = [], 0
        await self._write(pieces)
        await self._written()
        if declared is not None and size != declared:
            raise Invalid(f"The image has {size} bytes and {declared} were announced.")

    async def _in_time(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        iterator = aiter(chunks)
        while True:
            try:
                async with asyncio.timeout(self._stall):
                    chunk = await anext(iterator)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise Invalid(f"The upload stood still for {self._stall:g} seconds.") from error
            if chunk:
                yield chunk

    async def _write(self, pieces: list[bytes]) -> None:
        await self._written()
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(self._executor, self._part.write, pieces)
        self._writing.add_done_callback(_noted)

    async def _written(self) -> None:
        if self._writing is not None:
            await self._writing


def _noted(future: asyncio.Future[None]) -> None:
    """Whoever gave up the upload has an error already, and does not ask for that of the last write."""
    if not future.cancelled():
        future.exception()
