"""What the rest of the house asks of an identity service."""

from __future__ import annotations

from typing import Protocol

from kilonova.model.context import RequestContext


class Identity(Protocol):
    async def validate(self, token: str, request_id: str) -> RequestContext:
        """Who the bearer of the token is.  Raises Unauthenticated."""

    async def project_exists(self, project_id: str) -> bool: ...
