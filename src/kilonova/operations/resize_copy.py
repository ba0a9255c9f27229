"""The files of a guest come from where they were put aside to where they are to be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial

import structlog

from kilonova.db.engine import Tx
from kilonova.errors import KilonovaError
from kilonova.journal.model import Done, Run
from kilonova.model.migration import Status
from kilonova.model.states import Task
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import undone_at
from kilonova.operations.moving import context_of, mover_of, note, note_progress
from kilonova.operations.resize_ends import at_destination, destination_guest, ends, failed_if_down, gets_on
from kilonova.operations.steps import agent_of, command

log = structlog.get_logger("kilonova.resize")

LOOK = 2.0  # seconds between looks at how far the files are
FARTHEST = "bytes that have come"


async def copy(run: Run) -> Done:
    old, new = await ends(run)
    context, guest = await context_of(run), await destination_guest(run)
    async with at_destination(run, new):
        destination = mover_of(run, new)
        if old == new or context.shared:
            await destination.adopt_parked(command(run, "copy.adopt"), guest)
        else:
            inbox = await destination.open_inbox(command(run, "copy.open"), guest)
            async with failed_if_down(run, old), _progress_noted(run, old):
                await mover_of(run, old).send_files(command(run, "copy.send"), run.instance_uuid, inbox)
            await destination.close_inbox(command(run, "copy.close"), run.instance_uuid)
    return Done(
        host=new,
        changes={"task_state": Task.RESIZE_MIGRATED},
        write=lambda tx: note(tx, run, status=Status.POST_MIGRATING),
    )


async def uncopy(run: Run) -> Done:
    old, new = await ends(run)
    context = await context_of(run)

    async def remove() -> None:
        if old != new:
            await mover_of(run, new).close_inbox(command(run, "copy.undo.close"), run.instance_uuid)
        await agent_of(run, new).discard(command(run, "copy.undo"), run.instance_uuid)

    keep = context.shared or old == new
    done = await undone_at(run, new, remove, context.new_vifs, keep_files=keep)
    left = done.write

    def write(tx: Tx) -> None:
        note(tx, run, status=Status.MIGRATING)
        if left is not None and old != new:
            left(tx)

    return Done(host=new, changes={"task_state": Task.RESIZE_MIGRATING}, write=write)


@contextlib.asynccontextmanager
async def _progress_noted(run: Run, host: str) -> AsyncIterator[None]:
    """Meanwhile users can see how far the files are."""
    task = asyncio.create_task(_note_progress(run, host), name="progress of files")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _note_progress(run: Run, host: str) -> None:
    cloud: Cloud = run.cloud
    told: tuple[int | None, int | None] | None = None
    while True:
        await cloud.clock.sleep(LOOK)
        try:
            seen = await mover_of(run, host).progress(run.instance_uuid)
            if seen.phase != "copying" or told == (seen.disk_total, seen.disk_remaining):
                continue
            told = (seen.disk_total, seen.disk_remaining)
            if (seen.disk_processed or 0) > run.known.get(FARTHEST, 0):
                run.known[FARTHEST] = seen.disk_processed
                gets_on(run)
            await cloud.db.write(partial(note_progress, run=run, seen=seen))
        except KilonovaError as error:
            log.info("how far the files are cannot be told", instance=run.instance_uuid, error=str(error))
