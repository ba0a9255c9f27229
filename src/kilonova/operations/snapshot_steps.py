"""The steps in which a host makes an image of a guest: the file, and its way to the image service."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from kilonova.clock import ends_within
from kilonova.db import hosts, instances
from kilonova.db.engine import Tx
from kilonova.errors import Conflict, HostFault, KilonovaError, TryAgain
from kilonova.journal.model import DONE, Done, Run
from kilonova.model.context import RequestContext
from kilonova.operations import guards
from kilonova.operations.begin import found
from kilonova.operations.cloud import Cloud
from kilonova.operations.steps import agent_of, command, instance_of
from kilonova.rpc import versions

log = structlog.get_logger("kilonova.snapshot")

LOOK = 1.0  # seconds between looks at how far an upload has come


async def check_host(cloud: Cloud, context: RequestContext, uuid: str, guard: str) -> None:
    """Look whether the server's host can make images, before anything is turned off for one.

    Raises NotFound, Conflict (also for a state that does not allow it).
    """
    instance = await cloud.db.read(lambda tx: found(tx, uuid))
    guards.check(guard, instance, context)
    host = instance.host
    known = None if host is None else await cloud.top.read(lambda tx: hosts.show(tx, host))
    if known is not None and known.version:
        pin = versions.pinned(cloud.settings.text("compute", "upgrade_levels"))
        try:
            versions.require(known.host, versions.usable(known.version, pin), "upload_snapshot")
        except HostFault as error:
            raise Conflict(str(error)) from None


async def drop_image(run: Run) -> Done:
    """Undo: nobody gets an image that is not complete."""
    await run.cloud.image.remove_snapshot(run.params.image_id)
    return DONE


async def make_file(run: Run, task_state: str) -> Done:
    """Have the host put the guest's disk into a file; ``task_state`` is that of what comes then."""
    instance = await instance_of(run)
    assert instance.host is not None
    await agent_of(run, instance.host).snapshot(command(run, "snapshot"), instance.uuid, run.params.image_id)
    return Done(host=instance.host, changes={"task_state": task_state})


async def drop_file(run: Run) -> Done:
    """Undo: the host is rid of the file, and of what it is doing with it."""
    instance = await instance_of(run)
    assert instance.host is not None
    await agent_of(run, instance.host).drop_snapshot(
        command(run, "drop_snapshot"), instance.uuid, run.params.image_id
    )
    return Done(host=instance.host, changes={"progress": 0})


async def upload(run: Run) -> Done:
    """Let the host hand in the image's data, and have it do so; the image is active then."""
    cloud: Cloud = run.cloud
    instance = await instance_of(run)
    assert instance.host is not None
    image_id: str = run.params.image_id
    before = -1
    while not await cloud.image.open_upload(image_id, instance.host):
        try:
            await _hand_in(run, instance.host, image_id)
        except TryAgain as error:  # however long it takes, it goes on as long as more comes each time
            come: int = run.known.get("furthest", 0)
            if come <= before:
                raise
            log.info("an upload is interrupted", instance=instance.uuid, percent=come, error=str(error))
            before = come
            await cloud.clock.sleep(LOOK)
    agent = agent_of(run, instance.host)
    await agent.drop_snapshot(command(run, "drop_uploaded"), instance.uuid, image_id)
    return Done(host=instance.host, changes={"progress": 100})


async def _hand_in(run: Run, host: str, image_id: str) -> None:
    """Have the host hand in what has not come yet."""
    work = asyncio.ensure_future(
        agent_of(run, host).upload_snapshot(command(run, "upload"), run.instance_uuid, image_id)
    )
    try:
        await _followed(run, host, work)
    finally:
        work.cancel()
        await asyncio.wait({work})
    work.result()


async def _followed(run: Run, host: str, work: asyncio.Future[None]) -> None:
    """Until the work has ended, note with the server how far it has come."""
    cloud: Cloud = run.cloud
    while not await ends_within(LOOK, cloud.clock, work):
        try:
            percent = (await cloud.hosts.mover(host).progress(run.instance_uuid)).percent
        except KilonovaError as error:
            log.info("the progress of an upload is not known", instance=run.instance_uuid, error=str(error))
            continue
        if percent != run.known.get("uploaded"):
            run.known["uploaded"] = percent
            run.known["furthest"] = max(percent, run.known.get("furthest", 0))
            await cloud.db.write(partial(_note, run=run, percent=percent))


def _note(tx: Tx, run: Run, percent: int) -> None:
    instances.update(tx, run.instance_uuid, expect_task=instances.ANY, progress=percent)
