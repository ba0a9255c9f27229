"""Taking over what a host says of itself: its service, its node and its resource providers."""

from __future__ import annotations

import msgspec
import structlog

from kilonova.db import audit_repairs, host_report, host_resources, hosts
from kilonova.db.engine import Tx
from kilonova.model.host import DISABLED_TRAIT, Host, HostReport
from kilonova.operations.cloud import Cloud
from kilonova.operations.resume_guest import resume_guests
from kilonova.resources.reshape import Following
from kilonova.resources.shortfalls import shortfalls

log = structlog.get_logger("kilonova.hosts")


async def register(cloud: Cloud, report: HostReport, session: str = "") -> None:
    """Know the host from now on, under the words of its agent's ``session``.

    Converges.  Raises Conflict for a host that has changed its identity, or has less than is in use; what
    servers hold follows inventories to other providers only when the host's agent starts.
    """
    now = cloud.clock.now()

    def write(tx: Tx) -> tuple[Host, list[str]]:
        host = hosts.upsert(tx, report, now, session=session, cell_uuid=cloud.cell_uuid)
        changed = host_report.take_over(tx, report)
        return host, [*changed, *shortfalls(host_resources.read(tx, report.compute_id))]

    host, warnings = await cloud.top.write(write)
    for each in warnings:
        log.warning("less than servers hold", host=report.host, what=each)
    if report.starting:
        await _release_leftovers(cloud, report)
        await _follow(cloud, report)
    node, *below = report.tree
    if host.disabled:
        node = msgspec.structs.replace(node, traits=(*node.traits, DISABLED_TRAIT))
    for each in await cloud.placement.report_tree([node, *below]):
        log.warning("a provider is gone from a host, and servers hold of it", host=report.host, provider=each)
    cloud.scheduler.forget()
    if report.starting:
        await _see_to_guests(cloud, host, report)


async def _release_leftovers(cloud: Cloud, report: HostReport) -> None:
    """Take away what deleted servers still hold there, whoever gave it to them (RT-19)."""
    if cloud.db is not cloud.top:  # the servers are not where the allocations are: `kilonova doctor` looks
        return
    for uuid in await cloud.db.read(lambda tx: audit_repairs.leftovers(tx, report.compute_id)):
        released = await cloud.db.write(lambda tx, uuid=uuid: audit_repairs.release_deleted(tx, uuid, uuid))  # type: ignore[misc]
        log.warning("a deleted server held something", host=report.host, server=uuid, released=released)


async def _see_to_guests(cloud: Cloud, known: Host, report: HostReport) -> None:
    """A host that was booted runs none of the guests that it had; before its agent tells of each."""
    if not report.boot_id or report.boot_id == known.boot_id:
        return
    if known.boot_id and report.resume_guests:
        resumed = await resume_guests(cloud, report.host)
        log.info("a host was booted", host=report.host, guests_to_run_again=resumed)
    await cloud.top.write(lambda tx: hosts.note_boot(tx, report.host, report.boot_id))


async def _follow(cloud: Cloud, report: HostReport) -> None:
    """Move what is held to where the inventories are now.  Raises Conflict if there is no room."""
    devices = await cloud.top.read(lambda tx: host_resources.devices_held(tx, report.compute_id))
    moved = await cloud.placement.follow(Following(report, devices))
    if moved is not None:
        log.info("allocations follow inventories", host=report.host, consumers=sorted(moved.allocations))
