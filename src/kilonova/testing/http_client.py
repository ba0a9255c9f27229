"""A lean HTTP/1.1 client on asyncio streams: the load must not cost more than what it measures."""

from __future__ import annotations

import asyncio
import json
from typing import Any


class Client:
    """One keep-alive connection."""

    def __init__(self, host: str, port: int, headers: dict[str, str]) -> None:
        self._host, self._port = host, port
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes, dict[str, str]]:
        content = b"" if body is None else json.dumps(body).encode()
        kind = "Content-Type: application/json\r\n" if body is not None else ""
        return await self._exchange(method, path, content, kind)

    async def put(self, path: str, content: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Send data as they are."""
        return await self._exchange("PUT", path, content, "Content-Type: application/octet-stream\r\n")

    async def _exchange(
        self, method: str, path: str, content: bytes, kind: str
    ) -> tuple[int, bytes, dict[str, str]]:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=1 << 26)
        assert self._reader is not None
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{kind}Content-Length: {len(content)}\r\n"
        self._writer.write((head + self._headers + "\r\n").encode() + content)
        raw = await self._reader.readuntil(b"\r\n\r\n")
        lines = raw.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        status = int(lines[0].split()[1])
        if headers.get("transfer-encoding") == "chunked":
            return status, await self._chunks(), headers
        length = int(headers.get("content-length", "0"))
        return status, await self._reader.readexactly(length) if length else b"", headers

    async def _chunks(self) -> bytes:
        assert self._reader is not None
        pieces = []
        while size := int(await self._reader.readline(), 16):
            pieces.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readexactly(2)
        return b"".join(pieces)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
