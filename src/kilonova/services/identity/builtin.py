"""Identity in the database of the process itself.

``validate`` is part of every request to every service: a token that was good a moment ago is answered from
memory.  Whatever could make a token worse goes through ``change``, which empties that memory with its commit.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from kilonova.clock import SECOND, Clock
from kilonova.db import identity_tokens
from kilonova.db.engine import Database, Tx, UniqueViolation
from kilonova.db.identity_records import Project, find
from kilonova.db.identity_roles import SYSTEM
from kilonova.db.identity_tokens import Standing
from kilonova.errors import Conflict, Unauthenticated
from kilonova.model.context import RequestContext
from kilonova.services.identity import tokens
from kilonova.services.identity.keys import KeyRing
from kilonova.services.identity.passwords import Passwords
from kilonova.services.identity.tokens import Payload

T = TypeVar("T")

REMEMBERED = 8192  # tokens
LIFETIME = 3600.0  # seconds
EXPIRED_WINDOW = 172_800.0  # seconds; Keystone's [token]allow_expired_window
RECHECK = 1.0  # seconds


class Token(msgspec.Struct, frozen=True):
    """A token that is valid now."""

    payload: Payload
    standing: Standing


class _Known(msgspec.Struct, frozen=True):
    expires_at: int
    context: RequestContext


class BuiltinIdentity:
    """An Identity.

    ``key_directory`` has the token keys and is made if need be.  ``lifetime`` (seconds) is that of new
    tokens; for ``expired_window`` (seconds) more, services that ask for it may learn whose token it was: a
    long operation must be able to end.  ``recheck`` (seconds): how long a process may go without asking the
    database whether another process has changed anything; None if there is no other, which is the default
    on SQLite.
    """

    def __init__(
        self,
        db: Database,
        clock: Clock,
        key_directory: Path,
        *,
        lifetime: float = LIFETIME,
        expired_window: float = EXPIRED_WINDOW,
        recheck: float | None = None,
        passwords: Passwords | None = None,
    ) -> None:
        self.db = db
        self.clock = clock
        self.passwords = passwords or Passwords(clock)
        self._ring = KeyRing(key_directory)
        self._lifetime = int(lifetime * SECOND)
        self._expired_window = int(expired_window * SECOND)
        if recheck is None and db.name != "sqlite":
            recheck = RECHECK
        self._recheck = None if recheck is None else int(recheck * SECOND)
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._drops = 0
        self._revision = -1
        self._checked_at = 0

    async def validate(self, token: str, request_id: str) -> RequestContext:
        now = self.clock.now()
        if self._recheck is not None and now - self._checked_at >= self._recheck:
            await self._see_other_processes(now)
        key = tokens.digest(token)
        known = self._known.get(key)
        if known is None:
            known = await self._learn(token, key)
        else:
            self._known.move_to_end(key)
        if known.expires_at <= now:
            self._known.pop(key, None)
            raise Unauthenticated(tokens.NOT_VALID)
        return msgspec.structs.replace(known.context, request_id=request_id)

    async def inspect(self, token: str, *, allow_expired: bool = False) -> Token:
        """All about a token; ``allow_expired`` also about one that ended not long ago.

        Raises Unauthenticated.
        """
        payload = tokens.unseal(self._ring, token)
        end = payload.expires_at + (self._expired_window if allow_expired else 0)
        if end <= self.clock.now():
            raise Unauthenticated(tokens.NOT_VALID)

        def look(tx: Tx) -> Standing | None:
            if any(identity_tokens.is_revoked(tx, each) for each in payload.audit_ids[:1]):
                return None
            return identity_tokens.standing(tx, payload.user_id, payload.scope, payload.scope_id)

        standing = await self.db.read(look)
        if standing is None or (standing.user.generation, standing.scope_generation) != (
            payload.user_generation,
            payload.scope_generation,
        ):
            raise Unauthenticated(tokens.NOT_VALID)
        return Token(payload, standing)

    def issue(
        self, standing: Standing, methods: tuple[str, ...], parent: Payload | None
    ) -> tuple[str, Token]:
        """A new token, of the same end as the one that it was got with, if it was got with one."""
        now = self.clock.now()
        audit_ids: tuple[str, ...] = (tokens.new_audit_id(),)
        if parent is not None:
            audit_ids = (*audit_ids, parent.audit_ids[-1])
            methods = tuple(dict.fromkeys((*methods, *parent.methods)))
        payload = Payload(
            user_id=standing.user.id,
            methods=methods,
            scope=standing.scope,
            scope_id=_scope_id(standing),
            issued_at=now,
            expires_at=now + self._lifetime if parent is None else parent.expires_at,
            audit_ids=audit_ids,
            user_generation=standing.user.generation,
            scope_generation=standing.scope_generation,
        )
        return tokens.seal(self._ring, payload), Token(payload, standing)

    async def revoke(self, payload: Payload) -> None:
        """The token is not valid from now on."""
        audit_id, end = payload.audit_ids[0], payload.expires_at + self._expired_window
        now = self.clock.now()
        await self.change(lambda tx: identity_tokens.revoke(tx, audit_id, end, now))

    async def change(self, fn: Callable[[Tx], T]) -> T:
        """Run a transaction that may make tokens worse; what is remembered of them is forgotten.

        Raises Conflict when somebody else made the same thing at the same moment.
        """

        def transaction(tx: Tx) -> T:
            identity_tokens.count_revision(tx)
            tx.call_after_commit(self.forget)
            return fn(tx)

        try:
            return await self.db.write(transaction)
        except UniqueViolation as error:
            raise Conflict("Somebody else has just made one of this name.") from error

    async def project_exists(self, project_id: str) -> bool:
        return await self.db.read(lambda tx: find(tx, Project, project_id)) is not None

    def forget(self) -> None:
        """Remember no token."""
        self._drops += 1
        self._known.clear()

    def rotate_keys(self) -> None:
        """Seal new tokens with a new key."""
        self._ring.rotate()

    def close(self) -> None:
        self.passwords.close()

    async def _learn(self, token: str, key: bytes) -> _Known:
        drops = self._drops
        found = await self.inspect(token)
        known = _Known(found.payload.expires_at, _context(found, key))
        if drops == self._drops:  # else something changed after it was read
            self._known[key] = known
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return known

    async def _see_other_processes(self, now: int) -> None:
        revision = await self.db.read(identity_tokens.current_revision)
        if revision != self._revision:
            self._revision = revision
            self.forget()
        self._checked_at = now


def _scope_id(standing: Standing) -> str:
    if standing.scope == "system":
        return SYSTEM
    if standing.project is not None:
        return standing.project.id
    return standing.domain.id if standing.domain is not None else ""


def _context(token: Token, key: bytes) -> RequestContext:
    standing = token.standing
    project = standing.project
    return RequestContext(
        request_id="",
        user_id=standing.user.id,
        user_name=standing.user.name,
        project_id=project.id if project else None,
        project_name=project.name if project else "",
        domain_id=standing.domain.id if standing.scope == "domain" and standing.domain else None,
        system_scope=standing.scope == "system",
        roles=frozenset(role.name for role in standing.roles),
        token_id=key.hex(),
    )


def new_id() -> str:
    """An id in Keystone's form: 32 hexadecimal digits."""
    return secrets.token_hex(16)
