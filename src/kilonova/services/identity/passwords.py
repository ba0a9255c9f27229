"""Passwords: scrypt, in threads, with the parameters in the hash (the PHC string format)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec

from kilonova.clock import SECOND, Clock
from kilonova.errors import TryAgain

T = TypeVar("T")

MAX_LENGTH = 4096  # characters, as in Keystone
THREADS = 2
WAITING = 256  # passwords that may be waiting for a thread
REMEMBERED = 1024
REMEMBER = 600 * SECOND


class Cost(msgspec.Struct, frozen=True):
    """The parameters of scrypt (RFC 7914); the default is one of those that OWASP recommends."""

    log_n: int = 14
    r: int = 8
    p: int = 5


class Passwords:
    """Makes and checks hashes.

    A password that was right is remembered for ten minutes, as an HMAC of it and its hash under a key that
    only this process has and never writes: a command-line client sends its password with each command, and
    each would cost a fifth of a second of CPU.  A wrong password always costs the full price.
    """

    def __init__(self, clock: Clock, cost: Cost | None = None) -> None:
        self._clock = clock
        self._cost = cost or Cost()
        self._threads = ThreadPoolExecutor(THREADS, "password")
        self._waiting = 0
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, int] = OrderedDict()
        salt, key = secrets.token_bytes(16), secrets.token_bytes(32)
        self._nobody = _render(self._cost, salt, key)  # for users that do not exist: as slow, never right

    async def hash(self, password: str) -> str:
        return await self._in_thread(_hash, password, self._cost)

    async def verify(self, stored: str | None, password: str) -> bool:
        """Whether it is the password.  None, for a user who has none or is none, takes the same time."""
        target = stored or self._nobody
        mark = hmac.digest(self._key, f"{target}\0{password}".encode("utf-8", "surrogatepass"), "sha256")
        now = self._clock.now()
        if self._right.get(mark, 0) > now:
            return True
        right = await self._in_thread(_verify, target, password)
        if right:
            self._right[mark] = now + REMEMBER
            if len(self._right) > REMEMBERED:
                self._right.popitem(last=False)
        return right

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        if self._waiting >= WAITING:
            raise TryAgain("Too many passwords are being checked at the moment: try again.")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        finally:
            self._waiting -= 1


def _derive(password: str, salt: bytes, cost: Cost, length: int) -> bytes:
    data = password.encode("utf-8", "surrogatepass")
    n = 2**cost.log_n
    memory = 128 * cost.r * (n + cost.p + 2) + 2**20  # what it needs, and no limit of OpenSSL's own
    return hashlib.scrypt(data, salt=salt, n=n, r=cost.r, p=cost.p, maxmem=memory, dklen=length)


def _hash(password: str, cost: Cost) -> str:
    salt = secrets.token_bytes(16)
    return _render(cost, salt, _derive(password, salt, cost, 32))


def _render(cost: Cost, salt: bytes, key: bytes) -> str:
    both = "$".join(base64.b64encode(part).decode("ascii").rstrip("=") for part in (salt, key))
    return f"$scrypt$ln={cost.log_n},r={cost.r},p={cost.p}${both}"


def _verify(stored: str, password: str) -> bool:
    _, kind, parameters, salt, key = stored.split("$")
    if kind != "scrypt":
        raise ValueError(f"a password hash of the unknown kind {kind}")
    numbers = dict(part.split("=") for part in parameters.split(","))
    cost = Cost(int(numbers["ln"]), int(numbers["r"]), int(numbers["p"]))
    wanted = _bytes(key)
    return hmac.compare_digest(_derive(password, _bytes(salt), cost, len(wanted)), wanted)


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))
