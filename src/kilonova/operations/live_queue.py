"""Turns of live migrations: a host sends so many guests at a time, and the others wait in their order.

A turn is a status.  Whoever ends gives the turn to the next in the same commit, so that nobody polls, and no
death of a process loses or doubles a turn.
"""

from __future__ import annotations

from kilonova.db import migrations
from kilonova.db.engine import Tx
from kilonova.model.migration import Migration, Status
from kilonova.operations.cloud import Cloud

TURN = "live-migration-turn"  # a signal, tagged with the migration's uuid


def _limit(cloud: Cloud) -> int:
    """How many guests a host may send at a time; 0: any number."""
    return cloud.settings.number("max_concurrent_live_migrations")


def take(tx: Tx, cloud: Cloud, migration: Migration) -> bool:
    """Whether it is this migration's turn; it waits from now on, if it did not.  Converges."""
    host = str(migration.source_compute)
    migrations.lined_up(tx, host)  # first: who gets in line at the same moment sees what we have done
    migrations.update(tx, migration.uuid, expect=(Status.ACCEPTED,), status=Status.QUEUED)
    give(tx, cloud, host, but=migration.uuid)
    found = migrations.show(tx, migration.uuid)
    return found is not None and found.status != Status.QUEUED


def give(tx: Tx, cloud: Cloud, host: str, *, but: str = "", ended: str = "") -> None:
    """Give the turns that a host has free to those who wait longest, and tell them.

    ``but`` needs not be told; ``ended`` has its turn no more.
    """
    lined_up = [each for each in migrations.lined_up(tx, host) if each.uuid != ended]
    waiting = [each for each in lined_up if each.status == Status.QUEUED]
    limit = _limit(cloud)
    busy = sum(each.status not in (Status.ACCEPTED, Status.QUEUED) for each in lined_up)
    free = limit - busy if limit else len(waiting)
    for each in waiting[: max(free, 0)]:
        migrations.update(tx, each.uuid, expect=(Status.QUEUED,), status=Status.PREPARING)
        if each.uuid != but:
            cloud.journal.signal(tx, each.instance_uuid, TURN, each.uuid)
