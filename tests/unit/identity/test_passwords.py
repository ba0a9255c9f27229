"""Hashes of passwords: what they cost, what is remembered, and what never is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kilonova.errors import TryAgain
from kilonova.services.identity import passwords as module
from kilonova.services.identity.passwords import MAX_LENGTH, REMEMBER, WAITING, Cost, Passwords
from kilonova.testing.clock import VirtualClock

CHEAP = Cost(log_n=4, r=8, p=1)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def passwords(clock: VirtualClock) -> Iterator[Passwords]:
    made = Passwords(clock, CHEAP)
    yield made
    made.close()


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[Cost]:
    """The cost of each run of scrypt."""
    found: list[Cost] = []
    derive = module._derive

    def counting(password: str, salt: bytes, cost: Cost, length: int) -> bytes:
        found.append(cost)
        return derive(password, salt, cost, length)

    monkeypatch.setattr(module, "_derive", counting)
    return found


async def test_the_cost_of_a_real_hash(clock: VirtualClock) -> None:
    """OWASP's least for scrypt with 16 MiB: N 2^14, r 8, p 5."""
    real = Passwords(clock)
    stored = await real.hash("secret")
    assert stored.startswith("$scrypt$ln=14,r=8,p=5$")
    assert await real.verify(stored, "secret")
    assert not await real.verify(stored, "Secret")
    assert not await real.verify(None, "secret")
    real.close()


@pytest.mark.parametrize("cost", [Cost(1, 8, 1), Cost(12, 1, 1), Cost(10, 32, 16), Cost(4, 1, 64)])
async def test_any_cost_of_the_settings_works(clock: VirtualClock, cost: Cost) -> None:
    made = Passwords(clock, cost)
    stored = await made.hash("x")
    assert await made.verify(stored, "x") and not await made.verify(stored, "y")
    assert not await made.verify(None, "x")
    made.close()


@pytest.mark.parametrize(
    "password", ["", " ", "x" * MAX_LENGTH, "p\u00e4ss\U0001f511", "a\0b", "\ud800", "$scrypt$"]
)
async def test_any_text_can_be_a_password(passwords: Passwords, password: str) -> None:
    one, two = await passwords.hash(password), await passwords.hash(password)
    assert one != two, "each has a salt of its own"
    for stored in (one, two):
        assert await passwords.verify(stored, password)
        for other in (password + "x", password[:-1] if password else "x", password.swapcase() + "y"):
            assert not await passwords.verify(stored, other)


async def test_a_null_character_does_not_end_a_password(passwords: Passwords) -> None:
    assert not await passwords.verify(await passwords.hash("a\0b"), "a\0c")


async def test_a_hash_of_another_cost_is_still_good(clock: VirtualClock, derived: list[Cost]) -> None:
    old = Passwords(clock, Cost(log_n=5, r=4, p=2))
    stored = await old.hash("x")
    new = Passwords(clock, CHEAP)
    assert await new.verify(stored, "x")
    assert derived == [Cost(5, 4, 2), Cost(5, 4, 2)]
    old.close()
    new.close()


async def test_a_right_password_is_remembered_for_a_while(
    passwords: Passwords, clock: VirtualClock, derived: list[Cost]
) -> None:
    stored, other = await passwords.hash("x"), await passwords.hash("x")
    derived.clear()
    for _ in range(3):
        assert await passwords.verify(stored, "x")
    assert len(derived) == 1
    assert await passwords.verify(other, "x")
    assert len(derived) == 2, "another user's is not taken for it"
    assert not await passwords.verify(stored, "y")
    assert not await passwords.verify(stored, "y")
    assert len(derived) == 4, "a wrong one always costs the full price"
    clock.advance(REMEMBER / 1_000_000)
    assert await passwords.verify(stored, "x")
    assert len(derived) == 5


async def test_only_so_many_are_remembered(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    for n in range(5):
        assert await passwords.verify(await passwords.hash(str(n)), str(n))
    assert len(passwords._right) == 3


async def test_nobody_has_no_password(passwords: Passwords, derived: list[Cost]) -> None:
    """As slow as a real one, and never right, whatever was tried before."""
    for password in ("", "x", "x"):
        assert not await passwords.verify(None, password)
    assert derived == [CHEAP] * 3
    assert not passwords._right


async def test_a_flood_is_turned_away(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def slow(*arguments: Any) -> str:
        assert go.wait(60)
        return "done"

    monkeypatch.setattr(module, "_hash", slow)
    running = [asyncio.create_task(passwords.hash("x")) for _ in range(WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(TryAgain, match="try again"):
        await passwords.hash("x")
    go.set()
    assert await asyncio.gather(*running) == ["done"] * WAITING
    assert await passwords.hash("x") == "done"


async def test_a_hash_of_an_unknown_kind_is_a_fault(passwords: Passwords) -> None:
    with pytest.raises(ValueError, match="bcrypt"):
        await passwords.verify("$bcrypt$x$y$z", "x")
