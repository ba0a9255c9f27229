"""Who sends a request: the X-Auth-Token header, checked by an identity service."""

from __future__ import annotations

from typing import Protocol

from starlette.requests import Request

from kilonova.errors import Unauthenticated
from kilonova.model.context import RequestContext


class TokenValidator(Protocol):
    """The part of an identity service that every HTTP service needs."""

    async def validate(self, token: str, request_id: str) -> RequestContext:
        """Raises Unauthenticated."""


async def authenticate(request: Request, validator: TokenValidator, request_id: str) -> RequestContext:
    """The caller.  Raises Unauthenticated when there is no token or it is not valid."""
    token = request.headers.get("x-auth-token")
    if not token:
        raise Unauthenticated("The request you have made requires authentication.")
    return await validator.validate(token, request_id)
