"""Taking over what a host says of itself: its service, its node and its resource providers."""

from __future__ import annotations

import structlog

from kilonova.db import host_report, host_resources, hosts
from kilonova.db.engine import Tx
from kilonova.model.host import DISABLED_TRAIT, Host, HostReport
from kilonova.operations.cloud import Cloud
from kilonova.resources.shortfalls import shortfalls

log = structlog.get_logger("kilonova.hosts")


async def register(cloud: Cloud, report: HostReport, session: str = "") -> None:
    """Know the host from now on, under the words of its agent's ``session``.

    Converges.  Raises Conflict for a host that has changed its identity, or has less than is in use.
    """
    now = cloud.clock.now()

    def write(tx: Tx) -> tuple[Host, list[str]]:
        host = hosts.upsert(tx, report, now, session=session)
        changed = host_report.take_over(tx, report)
        return host, [*changed, *shortfalls(host_resources.read(tx, report.compute_id))]

    host, warnings = await cloud.db.write(write)
    for each in warnings:
        log.warning("less than servers hold", host=report.host, what=each)
    traits = (*report.traits, DISABLED_TRAIT) if host.disabled else report.traits
    await cloud.placement.report(report.compute_id, report.hypervisor_hostname, report.inventories, traits)
    cloud.scheduler.forget()
