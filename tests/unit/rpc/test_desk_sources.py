"""The desk as the parts of a host see it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kilonova.errors import NotFound, Unreachable
from kilonova.rpc.desk_sources import AHEAD, DeskImages, DeskWiring

PIECE = 10


class Desk:
    """Has one image, whose pieces come in any order."""

    def __init__(self, size: int) -> None:
        self.content = bytes(index % 251 for index in range(size))
        self.asked: list[int] = []
        self.at_once = self.most_at_once = 0
        self.fails_at = -1
        self.told: list[tuple[str, str]] = []

    async def image(self, image_id: str, offset: int) -> bytes:
        if image_id != "i1":
            raise NotFound("no such image")
        self.asked.append(offset)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await asyncio.sleep(0.002 if offset % 20 else 0)
        finally:
            self.at_once -= 1
        if offset == self.fails_at:
            raise Unreachable("gone")
        return self.content[offset : offset + PIECE]

    async def port(self, port_id: str) -> Any:
        return f"port {port_id}"

    async def network(self, network_id: str) -> Any:
        return f"network {network_id}"

    async def tell_peers(self, network_id: str) -> None:
        self.told.append(("peers", network_id))

    async def port_up(self, port_id: str) -> None:
        self.told.append(("up", port_id))

    async def port_down(self, port_id: str) -> None:
        self.told.append(("down", port_id))


async def read(desk: Desk, image_id: str = "i1") -> bytes:
    pieces = [piece async for piece in DeskImages(desk, PIECE).read(image_id)]  # type: ignore[arg-type]
    assert all(pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 40, 99, 100, 101, 1000])
async def test_an_image_comes_whole_and_in_its_order(size: int) -> None:
    desk = Desk(size)
    assert await read(desk) == desk.content
    assert desk.most_at_once <= AHEAD
    assert desk.at_once == 0


async def test_several_pieces_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(500)
    await read(desk)
    assert desk.most_at_once == AHEAD


async def test_errors_come_to_the_reader_and_nothing_is_left_behind() -> None:
    desk = Desk(100)
    with pytest.raises(NotFound):
        await read(desk, "i2")
    desk.fails_at = 50
    with pytest.raises(Unreachable):
        await read(desk)
    assert desk.at_once == 0


async def test_a_reader_may_stop() -> None:
    desk = Desk(1000)
    source = DeskImages(desk, PIECE).read("i1")  # type: ignore[arg-type]
    assert await anext(source) == desk.content[:PIECE]
    await source.aclose()  # type: ignore[attr-defined]
    asked = len(desk.asked)
    await asyncio.sleep(0.01)
    assert (desk.at_once, len(desk.asked)) == (0, asked)


async def test_wiring() -> None:
    desk, heard = Desk(0), list[tuple[str, str]]()
    wiring = DeskWiring(desk)  # type: ignore[arg-type]
    assert await wiring.port("p1", "h1") == "port p1"
    assert await wiring.network("n1") == "network n1"
    await wiring.port_up("p1", "h1")
    await wiring.port_down("p2", "h1")
    assert desk.told == [("up", "p1"), ("down", "p2")]
    end = wiring.subscribe(lambda kind, thing: heard.append((kind, thing)))
    wiring.changed("port", "p1")
    end()
    wiring.changed("port", "p2")
    assert heard == [("port", "p1")]
