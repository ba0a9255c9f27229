"""One request on its way through a handler: who asks, for what, in which microversion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from starlette.types import Scope

from kilonova.api.policy import Policy
from kilonova.api.query import NO_QUERY, Query
from kilonova.model.context import RequestContext

if TYPE_CHECKING:
    from kilonova.api.routes import Route
    from kilonova.operations.cloud import Cloud


@dataclass(slots=True)
class Answer:
    """What a handler gives when the route's own status, or no header, will not do."""

    body: Any = None
    status: int | None = None  # None: the route's
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


class Call:
    """``path`` has the varying segments of the address, ``query`` its query, ``body`` the checked body
    (of the route's shape)."""

    __slots__ = (
        "_bookmarks",
        "_links",
        "body",
        "cloud",
        "context",
        "legacy",
        "path",
        "policy",
        "project_in_url",
        "query",
        "route",
        "scope",
        "version",
    )

    def __init__(
        self, cloud: Cloud, policy: Policy, context: RequestContext, scope: Scope, version: int
    ) -> None:
        self.cloud = cloud
        self.policy = policy
        self.context = context
        self.scope = scope
        self.version = version
        self.path: dict[str, str] = {}
        self.query: Query = NO_QUERY
        self.body: Any = None
        self.route: Route
        self.project_in_url: str | None = None
        self.legacy = False  # by /v2, where unknown fields of bodies are let pass
        self._links: str | None = None
        self._bookmarks: str | None = None

    async def handled_in(self, cloud: Cloud) -> Any:
        """What the handler gives in this cell."""
        self.cloud = cloud
        return await self.route.handler(self)

    @property
    def request_id(self) -> str:
        return self.context.request_id

    def may(self, rule: str, target: dict[str, Any] | None = None) -> bool:
        """Whether the policy allows ``rule``; ``target`` None: what is the caller's own project's."""
        return self.policy.allows(self.context, rule, target)

    def allow(self, rule: str | None = None, target: dict[str, Any] | None = None) -> None:
        """Raises Forbidden unless the policy allows ``rule`` (None: that of the route)."""
        name = rule or self.route.policy
        assert name is not None, "this route has no policy rule"
        self.policy.enforce(self.context, name, target)

    @property
    def bookmarks(self) -> str:
        """What ``bookmark`` links begin with: the address without the API's version."""
        if self._bookmarks is None:
            root = link_root(self.scope, self.cloud.settings.text("compute_link_prefix", "api"))
            self._bookmarks = f"{root}/{self.project_in_url}" if self.project_in_url else root
        return self._bookmarks

    @property
    def links(self) -> str:
        """What ``self`` links begin with: the address of the endpoint as the caller uses it."""
        if self._links is None:
            root = link_root(self.scope, self.cloud.settings.text("compute_link_prefix", "api"))
            base = "v2" if self.legacy else "v2.1"
            self._links = f"{root}/{base}/{self.project_in_url}" if self.project_in_url else f"{root}/{base}"
        return self._links

    @property
    def url(self) -> str:
        """The request's own address, without its query."""
        root = link_root(self.scope, self.cloud.settings.text("compute_link_prefix", "api"))
        return root + quote(self.scope["path"])

    def links_of(self, collection: str, identity: str) -> list[dict[str, str]]:
        """The two links that most resources show."""
        return [
            {"rel": "self", "href": f"{self.links}/{collection}/{identity}"},
            {"rel": "bookmark", "href": f"{self.bookmarks}/{collection}/{identity}"},
        ]


def link_root(scope: Scope, prefix: str) -> str:
    """``http://host:port`` as the caller wrote it, or the operator's ``compute_link_prefix``."""
    if prefix:
        parts = urlsplit(prefix)
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    host = ""
    for name, value in scope["headers"]:
        if name == b"host":
            host = value.decode("latin-1")
            break
    if not host:
        address, port = scope.get("server") or ("localhost", None)
        host = f"{address}:{port}" if port else str(address)
    return f"{scope['scheme']}://{host}"
