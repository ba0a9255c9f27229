"""Taking over what a host says of itself: its service, its node and its resource providers."""

from __future__ import annotations

from kilonova.db import hosts
from kilonova.model.host import DISABLED_TRAIT, HostReport
from kilonova.operations.cloud import Cloud


async def register(cloud: Cloud, report: HostReport, session: str = "") -> None:
    """Know the host from now on, under the words of its agent's ``session``.

    Converges.  Raises Conflict for a host that has changed its identity, or has less than is in use.
    """
    now = cloud.clock.now()
    host = await cloud.db.write(lambda tx: hosts.upsert(tx, report, now, session=session))
    traits = (*report.traits, DISABLED_TRAIT) if host.disabled else report.traits
    await cloud.placement.report(report.compute_id, report.hypervisor_hostname, report.inventories, traits)
    cloud.scheduler.forget()
