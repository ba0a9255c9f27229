"""What is inside a token.  Only digests of tokens are kept or logged."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets

import msgspec

from kilonova.errors import Unauthenticated
from kilonova.services.identity.keys import KeyRing

MAX_LENGTH = 1024
_LOOKS_RIGHT = re.compile(r"([A-Za-z0-9_-]{4})+([A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?\Z")
NOT_VALID = "The request you have made requires authentication."


class Payload(msgspec.Struct, frozen=True, array_like=True):
    """Who, for what, how long.  ``audit_ids`` has the token's own and, after rescoping, the first one's."""

    user_id: str
    methods: tuple[str, ...]
    scope: str  # "none", "project", "domain", "system"
    scope_id: str
    issued_at: int
    expires_at: int
    audit_ids: tuple[str, ...]
    user_generation: int
    scope_generation: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Payload).decode


def seal(ring: KeyRing, payload: Payload) -> str:
    return ring.seal(_encode(payload), payload.issued_at)


def unseal(ring: KeyRing, text: str) -> Payload:
    """Raises Unauthenticated for anything that is not one of our tokens."""
    if len(text) > MAX_LENGTH or not _LOOKS_RIGHT.match(text) or not _is_canonical(text):
        raise Unauthenticated(NOT_VALID)
    data = ring.open(text)
    if data is None:
        raise Unauthenticated(NOT_VALID)
    try:
        return _decode(data)
    except msgspec.DecodeError as error:  # sealed by another release
        raise Unauthenticated(NOT_VALID) from error


def _is_canonical(text: str) -> bool:
    """Whether it is the one spelling of its bytes: Base64 may have bits at its end that say nothing."""
    return base64.urlsafe_b64encode(base64.urlsafe_b64decode(text)).decode("ascii") == text


def digest(text: str) -> bytes:
    """What a token is known by inside the house."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def new_audit_id() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(16)).rstrip(b"=").decode("ascii")
