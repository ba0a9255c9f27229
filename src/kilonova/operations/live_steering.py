"""Wishes of users for live migrations that are under way: to abort one, or to bring it to its end.

A wish is kept with the migration and not sent to anybody: whoever runs the migration hears it, also when that
is another process by then.
"""

from __future__ import annotations

from kilonova.db import migrations
from kilonova.db.engine import Tx
from kilonova.errors import Invalid, KilonovaError, NotFound
from kilonova.journal import finished
from kilonova.journal.model import Run
from kilonova.model.context import RequestContext
from kilonova.model.migration import LIVE, Migration, Status, Wish
from kilonova.operations import guards
from kilonova.operations.begin import found
from kilonova.operations.cloud import Cloud

WISHED = "live-migration-wish"  # a signal, so that one that waits for its turn hears at once
STARTED = (Status.RUNNING,)
BEFORE = (Status.QUEUED, Status.PREPARING)


class Aborted(KilonovaError):
    """A user has asked for the migration to be given up, or its time was up."""


class NoSuchMigration(Invalid):
    """Nova's answer to a forced completion of what is no live migration of that server."""


async def abort(
    cloud: Cloud, context: RequestContext, uuid: str, number: int, *, before: bool = False
) -> None:
    """``before``: also one that is queued or is being prepared.  Raises NotFound, Conflict, Invalid."""
    allowed = STARTED + BEFORE if before else STARTED
    await _wish(cloud, context, uuid, number, "abort", allowed)


async def force_complete(cloud: Cloud, context: RequestContext, uuid: str, number: int) -> None:
    """Raises NotFound (the server), Conflict, Invalid."""
    try:
        await _wish(cloud, context, uuid, number, "force_complete", STARTED)
    except _NotThere as error:
        raise NoSuchMigration(str(error)) from error


class _NotThere(NotFound):
    pass


async def _wish(
    cloud: Cloud, context: RequestContext, uuid: str, number: int, what: str, allowed: tuple[str, ...]
) -> None:
    wish = {"abort": Wish.ABORT, "force_complete": Wish.FORCE_COMPLETE}[what]

    def write(tx: Tx) -> None:
        instance = found(tx, uuid)
        guard = guards.check(f"live_migration_{what}", instance, context)
        migration = _found(tx, uuid, number)
        if not migrations.update(tx, migration.uuid, expect=allowed, wish=wish):
            raise Invalid(
                f"Migration {number} state of instance {uuid} is {migration.status}. "
                f"Cannot {what} while the migration is in this state."
            )
        event = f"compute_live_migration_{what}"
        finished.record(tx, context, uuid, guard.action, cloud.clock.now(), event)
        cloud.journal.signal(tx, uuid, WISHED, migration.uuid)

    await cloud.db.write(write)


def _found(tx: Tx, uuid: str, number: int) -> Migration:
    migration = migrations.by_number(tx, uuid, number)
    if migration is None or migration.migration_type != LIVE:
        raise _NotThere(f"Migration {number} not found for instance {uuid}")
    return migration


async def heed(run: Run) -> None:
    """Raises Aborted if that is wished, before there is anything to abort."""
    found = await run.cloud.db.read(lambda tx: migrations.show(tx, run.params.migration))
    if found is not None and found.wish == Wish.ABORT:
        raise Aborted("The live migration was aborted.")
