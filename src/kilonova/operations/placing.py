"""Finding a host for a server and booking it there: for a new one, an evacuated one, one that moves."""

from __future__ import annotations

from typing import Any

from kilonova.db import server_groups
from kilonova.db.engine import Tx
from kilonova.model.flavor import Flavor
from kilonova.model.host_resources import Wanted
from kilonova.model.instance import ImageMeta, Instance
from kilonova.operations.cloud import Cloud
from kilonova.resources.claims import Claims, is_special_kind
from kilonova.scheduler.request import Candidate, Selection, ServerRequest
from kilonova.scheduler.wanted import wanted_of
from kilonova.settings import Settings


def request_of(cloud: Cloud, instance: Instance, **more: Any) -> ServerRequest:
    """What the scheduler is asked for a server; ``more`` are fields of the request.

    Raises Invalid for a flavor and an image that contradict each other.
    """
    own = {
        "uuid": instance.uuid,
        "project_id": instance.project_id,
        "hints": instance.hints,
        "availability_zone": instance.pinned_availability_zone,
        "cells": cloud.own_cells,
    }
    return request_for_flavor(
        cloud.settings, cloud.claims, instance.flavor, instance.image, **{**own, **more}
    )


def request_for_flavor(
    settings: Settings, claims: Claims, flavor: Flavor, image: ImageMeta | None, **more: Any
) -> ServerRequest:
    """The same for a flavor and an image.  ``more``: at least ``uuid`` and ``project_id``."""
    properties = image.properties if image else {}
    typed = image is not None and settings.flag("query_placement_for_image_type_support", "scheduler")
    wanted = wanted_of(
        flavor,
        properties,
        image_traits=settings.flag("image_metadata_prefilter", "scheduler"),
        disk_format=image.disk_format if image is not None and typed else None,
        root_disk=image is not None,
    )
    special = claims.wanted(flavor, properties) if is_special_kind(flavor, properties) else Wanted()
    return ServerRequest(
        wanted=wanted,
        flavor=flavor.name,
        image_id=image.id if image else None,
        image_properties=properties,
        extra_specs=flavor.extra_specs,
        **{"special": special, **more},
    )


async def place(
    cloud: Cloud, instance: Instance, request: ServerRequest, *, consumer: str | None = None
) -> Selection:
    """The host that was chosen, with everything booked there for the server (or for ``consumer``).

    The policy of its server group is kept in the transaction that books, whatever races.  Raises NoValidHost,
    Conflict (the consumer holds something already).
    """
    group = instance.hints.get("group")
    holder = consumer or instance.uuid

    async def claim(candidate: Candidate) -> str | None:
        violations: list[str] = []

        def keeps_policy(tx: Tx) -> bool:
            violations.clear()
            wrong = server_groups.violation(tx, str(group), instance.uuid, candidate.compute_id)
            if wrong is not None:
                violations.append(wrong)
            return wrong is None

        made = await cloud.claims.claim(
            holder,
            candidate.compute_id,
            candidate.special,
            candidate.allocations,
            instance.project_id,
            instance.user_id,
            instance_uuid=instance.uuid,
            also=None if group is None else keeps_policy,
        )
        if violations:
            return violations[0]
        return made if isinstance(made, str) else None

    return await cloud.scheduler.select(request, claim)
