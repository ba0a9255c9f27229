"""The quota of a server that changes its flavor: what grows is booked before anything is done, what shrinks
is given back when the server has moved; at rest what counts is the flavor that it has.

In a cell of its own the server's flavor stands in its mapping, too, and is changed there in the transaction
that books: so that happens once, however often a step is repeated.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from kilonova.db import instance_mappings, instances, migration_contexts, quotas
from kilonova.db.engine import Tx
from kilonova.journal.model import Run
from kilonova.model.flavor import Flavor
from kilonova.model.instance import Instance
from kilonova.operations.cloud import Cloud
from kilonova.resources.quota import defaults


def booked(old: Flavor, new: Flavor) -> Flavor:
    """What counts while a server moves: of each the greater."""
    vcpus, memory_mb = max(old.vcpus, new.vcpus), max(old.memory_mb, new.memory_mb)
    return replace(new, vcpus=vcpus, memory_mb=memory_mb)


def reserve(tx: Tx, cloud: Cloud, instance: Instance, old: Flavor, new: Flavor) -> None:
    """Book what a server grows by, for its owner (API-103).  Raises OverQuota."""
    project, user = instance.project_id, instance.user_id
    limits = quotas.effective_limits(tx, project, user, defaults(cloud.settings))
    more = _more(old, new)
    quotas.reserve(tx, project, user, limits, instances=0, **more)


def check(tx: Tx, cloud: Cloud, instance: Instance, old: Flavor, new: Flavor) -> None:
    """As ``reserve``, and nothing is booked."""
    project, user = instance.project_id, instance.user_id
    limits = quotas.effective_limits(tx, project, user, defaults(cloud.settings))
    more = _more(old, new)
    for some, used in (
        (limits.project, quotas.usage(tx, project)),
        (limits.of_user, quotas.usage(tx, project, user)),
    ):
        names = quotas.exceeded(some, used, more)
        if names:
            raise quotas.over_quota(names, some, used, more)


def _more(old: Flavor, new: Flavor) -> dict[str, int]:
    return {"cores": max(0, new.vcpus - old.vcpus), "ram": max(0, new.memory_mb - old.memory_mb)}


async def book(run: Run, instance: Instance, old: Flavor, new: Flavor) -> None:
    """Book what a server of another cell than the first grows by; of the others it was done at once."""
    cloud: Cloud = run.cloud

    def write(tx: Tx) -> None:
        if _change_once(tx, instance, old, booked(old, new)):
            reserve(tx, cloud, instance, old, new)

    if cloud.cell_uuid is not None:
        await cloud.top.write(write)


async def rebook(run: Run, instance: Instance, before: Flavor, after: Flavor) -> Callable[[Tx], None]:
    """Have ``after`` counted instead of ``before``, whatever the limits: in the commit that makes what this
    gives.  A revert is never refused for quota, as the server had it before."""
    cloud: Cloud = run.cloud

    def write(tx: Tx) -> None:
        quotas.give_back(
            tx,
            instance.project_id,
            instance.user_id,
            instances=0,
            cores=before.vcpus - after.vcpus,
            ram=before.memory_mb - after.memory_mb,
        )

    def write_once(tx: Tx) -> None:
        if _change_once(tx, instance, before, after):
            write(tx)

    if cloud.cell_uuid is None:
        return write
    await cloud.top.write(write_once)
    return lambda tx: None


def settle_abandoned(tx: Tx, run: Run) -> None:
    """A resize was given up halfway: what counts is the flavor that the server has.

    In a cell of its own that is left to `kilonova doctor`, as the quota is in another database.
    """
    cloud: Cloud = run.cloud
    instance = instances.show(tx, run.instance_uuid)
    context = migration_contexts.show(tx, run.params.migration)
    if cloud.cell_uuid is not None or instance is None or context is None or context.new_flavor is None:
        return
    old, new = context.old_flavor, context.new_flavor
    if instance.flavor == old:
        more = _more(old, new)
        quotas.give_back(tx, instance.project_id, instance.user_id, instances=0, **more)


def _change_once(tx: Tx, instance: Instance, before: Flavor, after: Flavor) -> bool:
    quotas.lock_project(tx, instance.project_id)
    return instance_mappings.change_flavor(tx, instance.uuid, before, after)
