"""Who asks: what a token says, carried through every call and into every operation."""

from __future__ import annotations

import msgspec


class RequestContext(msgspec.Struct, frozen=True, kw_only=True):
    """The caller of one request, in oslo.context's words."""

    request_id: str
    user_id: str
    user_name: str = ""
    project_id: str | None = None
    project_name: str = ""
    domain_id: str | None = None
    system_scope: bool = False
    roles: frozenset[str] = frozenset()
    token_id: str = ""  # a digest of the token, never the token

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles

    def policy_credentials(self) -> dict[str, object]:
        """What oslo.policy rules may look at."""
        return {
            "user_id": self.user_id,
            "project_id": self.project_id,
            "domain_id": self.domain_id,
            "roles": sorted(self.roles),
            "is_admin": self.is_admin,
            "system_scope": "all" if self.system_scope else None,
        }
