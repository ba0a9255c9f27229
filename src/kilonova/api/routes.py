"""Routes as data, and finding the one that a request is for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kilonova.api.microversion import MAX, MIN
from kilonova.api.query import Keys
from kilonova.api.shape import Shape

if TYPE_CHECKING:
    from kilonova.api.call import Call

Handler = Callable[["Call"], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """One thing that can be asked of the API.

    ``path`` is relative to the endpoint, with ``{names}`` for the segments that vary.  ``action`` is the one
    key of the body of a ``POST .../action``.  ``handler`` gives the body of the answer (None: empty) for the
    status ``success``, or an Answer.  ``policy`` is checked before the handler runs, against the caller's
    own project; with ``late`` the handler checks it itself, against what it has found.
    ``body`` and ``query`` are checked first of all.
    """

    method: str
    path: str
    handler: Handler
    policy: str | None = None
    since: int = MIN
    until: int = MAX
    success: int = 200
    action: str | None = None
    body: type[Shape] | None = None
    query: Keys | None = None
    late: bool = False

    def serves(self, version: int) -> bool:
        return self.since <= version <= self.until


def server_action(name: str, handler: Handler, policy: str, body: type[Shape], success: int = 202) -> Route:
    """An action of a server, whose policy its handler checks; ``policy`` is without ``os_compute_api:``."""
    rule = f"os_compute_api:{policy}"
    path = "/servers/{server_id}/action"
    return Route("POST", path, handler, rule, action=name, body=body, success=success, late=True)


class Leaf:
    """All routes of one path."""

    __slots__ = ("actions", "methods")

    def __init__(self) -> None:
        self.methods: dict[str, list[Route]] = {}
        self.actions: dict[str, list[Route]] = {}


class _Node:
    __slots__ = ("leaf", "literals", "variable")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.variable: tuple[str, _Node] | None = None
        self.leaf: Leaf | None = None


class Router:
    """A tree of path segments: finding a route costs one look-up a segment."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Raises ValueError for two routes that would answer the same request."""
        self.routes = tuple(routes)
        self._root = _Node()
        for route in self.routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        node = self._root
        for segment in route.path.strip("/").split("/"):
            if segment.startswith("{"):
                name = segment.strip("{}")
                if node.variable is None:
                    node.variable = (name, _Node())
                elif node.variable[0] != name:
                    raise ValueError(f"{route.path}: another route calls {{{name}}} {{{node.variable[0]}}}")
                node = node.variable[1]
            else:
                node = node.literals.setdefault(segment, _Node())
        leaf = node.leaf = node.leaf or Leaf()
        if route.action is None:
            siblings = leaf.methods.setdefault(route.method, [])
        else:
            siblings = leaf.actions.setdefault(route.action, [])
        if any(one.since <= route.until and route.since <= one.until for one in siblings):
            raise ValueError(f"two routes for {route.method} {route.path} {route.action or ''}")
        siblings.append(route)

    def knows(self, segment: str) -> bool:
        """Whether some path begins with this segment."""
        return segment in self._root.literals

    def find(self, segments: list[str]) -> tuple[Leaf, dict[str, str]] | None:
        """The routes of a path and the values of its varying segments; None for an unknown path."""
        values: dict[str, str] = {}
        leaf = _find(self._root, segments, 0, values)
        return None if leaf is None else (leaf, values)


def _find(node: _Node, segments: list[str], at: int, values: dict[str, str]) -> Leaf | None:
    if at == len(segments):
        return node.leaf
    segment = segments[at]
    child = node.literals.get(segment)
    if child is not None:
        leaf = _find(child, segments, at + 1, values)
        if leaf is not None:
            return leaf
    if node.variable is not None and segment:
        name, child = node.variable
        leaf = _find(child, segments, at + 1, values)
        if leaf is not None:
            values[name] = segment
            return leaf
    return None


def choose(routes: list[Route], version: int) -> Route | None:
    """The one route that answers for a microversion."""
    for route in routes:
        if route.serves(version):
            return route
    return None
