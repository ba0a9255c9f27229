"""All resources of the API: a module each, with its ``ROUTES``."""

from __future__ import annotations

from collections.abc import Iterator

from kilonova.api import (
    aggregates,
    availability_zones,
    extensions,
    external_events,
    flavor_access,
    flavor_extra_specs,
    flavors,
    hypervisors,
    instance_actions,
    keypairs,
    limits,
    migrations,
    quota_classes,
    quotas,
    server_actions,
    server_create_image,
    server_diagnostics,
    server_evacuate,
    server_groups,
    server_interfaces,
    server_ips,
    server_live_migration,
    server_metadata,
    server_migrations,
    server_resize,
    server_shelve,
    server_tags,
    server_topology,
    server_volumes,
    servers,
    services,
    usages,
    versions_show,
)
from kilonova.api.routes import Route

RESOURCES: tuple[tuple[Route, ...], ...] = (
    servers.ROUTES,
    server_actions.ROUTES,
    server_shelve.ROUTES,
    server_create_image.ROUTES,
    server_evacuate.ROUTES,
    server_metadata.ROUTES,
    server_tags.ROUTES,
    server_ips.ROUTES,
    server_interfaces.ROUTES,
    server_volumes.ROUTES,
    server_diagnostics.ROUTES,
    server_topology.ROUTES,
    server_migrations.ROUTES,
    server_live_migration.ROUTES,
    server_resize.ROUTES,
    instance_actions.ROUTES,
    external_events.ROUTES,
    flavors.ROUTES,
    flavor_extra_specs.ROUTES,
    flavor_access.ROUTES,
    keypairs.ROUTES,
    limits.ROUTES,
    quotas.ROUTES,
    quota_classes.ROUTES,
    usages.ROUTES,
    availability_zones.ROUTES,
    aggregates.ROUTES,
    server_groups.ROUTES,
    hypervisors.ROUTES,
    services.ROUTES,
    migrations.ROUTES,
    extensions.ROUTES,
    versions_show.ROUTES,
)


def all_routes() -> Iterator[Route]:
    """Every route that is served.  A new resource adds its module above."""
    for routes in RESOURCES:
        yield from routes
