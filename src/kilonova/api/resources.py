"""All resources of the API: a module each, with its ``ROUTES``."""

from __future__ import annotations

from collections.abc import Iterator

from kilonova.api.routes import Route


def all_routes() -> Iterator[Route]:
    """Every route that is served.  A new resource adds its module here."""
    modules: tuple[tuple[Route, ...], ...] = ()
    for routes in modules:
        yield from routes
