"""Ridding hosts of what they still have of servers that left while they could not be asked.

A host that fails may come back with its guests, or may never have stopped running them and only have been
cut off.  Whoever takes a server from it without asking writes down what it owes (`leave`).  As soon as it is
heard of again it is asked to end that guest, to unplug its ports and to remove its files, by whichever
controller hears of it first; several may, as every verb converges.  Until then the server does not come back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import structlog

from kilonova.clock import SECOND, set_within
from kilonova.db import hosts, instances, leftovers, migrations
from kilonova.db.engine import DatabaseUnavailable, Tx
from kilonova.db.leftovers import Leftover
from kilonova.errors import HostFault, KilonovaError, LostLease, Unreachable
from kilonova.journal.model import Done, Run
from kilonova.model.instance import Instance
from kilonova.model.migration import EVACUATION, MIGRATION, RESIZE, Migration, Status
from kilonova.model.port import Vif
from kilonova.operations.cloud import Cloud
from kilonova.rpc.messages import Command

log = structlog.get_logger("kilonova.leftovers")

EVERY = 3.0  # seconds between looks at who owes something and can be heard
AT_ONCE = 8  # guests that one host is rid of at a time
LAST_EPOCH = 2**31 - 1  # the operation that has left it asks that host for nothing more
OWES = "it has not yet been cleared of what it had of the server"


# ---- whether a host can be asked ----


async def is_heard(cloud: Cloud, host: str) -> bool:
    """Whether a host gives signs of life, whatever an operator says of it."""
    known = await cloud.top.read(lambda tx: hosts.show(tx, host))
    return known is not None and _is_heard(cloud, known.last_seen_at)


def _is_heard(cloud: Cloud, last_seen_at: int) -> bool:
    limit = cloud.settings.number("service_down_time") * SECOND
    return abs(cloud.clock.now() - last_seen_at) <= limit


async def host_is_down(cloud: Cloud, host: str) -> bool:
    """Whether a host is known to be down: by its missing signs of life, or because an operator says so.

    Signs that were lost on our side are none that it has not given.
    """
    known = await cloud.top.read(lambda tx: hosts.show(tx, host))
    if known is None or known.forced_down:
        return True
    return not _is_heard(cloud, known.last_seen_at) and not cloud.scheduler.was_interrupted


async def is_down(run: Run, host: str) -> bool:
    """As ``host_is_down``, for steps."""
    return await host_is_down(run.cloud, host)


async def was_booted(run: Run, host: str, since: int) -> bool:
    """Whether a host has told of a boot after that moment: what ran there does not any more."""
    known = await run.cloud.top.read(lambda tx: hosts.show(tx, host))
    return known is not None and known.booted_at > since


@contextlib.asynccontextmanager
async def another_if_down(run: Run, host: str) -> AsyncIterator[None]:
    """Work at a host that another one may do instead: one that goes down meanwhile is given up at once."""
    try:
        yield
    except Unreachable as error:
        if await is_down(run, host):
            raise HostFault(f"The host {host} has gone down.") from error
        raise


# ---- what is left to hosts ----


def leave(
    tx: Tx,
    run: Run,
    host: str,
    vifs: tuple[Vif, ...],
    *,
    keep_files: bool = False,
    migration: str | None = None,
) -> None:
    """The host cannot be asked: it is rid of what it has of the run's server when it is back.

    ``vifs`` as they are bound there, ``keep_files``: on storage that others share.  ``migration`` is the
    consumer that holds what the host gave, until then.
    """
    leftovers.owe(
        tx,
        Leftover(
            host=host,
            instance_uuid=run.instance_uuid,
            migration_uuid=migration,
            action=run.action.id,
            vifs=vifs,
            keep_files=keep_files,
            created_at=run.cloud.clock.now(),
        ),
    )


async def undone_at(
    run: Run,
    host: str,
    verb: Callable[[], Awaitable[object]],
    vifs: tuple[Vif, ...] = (),
    *,
    keep_files: bool = False,
    also: Callable[[Tx], None] = lambda tx: None,
) -> Done:
    """Take something away at a host, or leave it to the host when it is down; ``also`` is in the commit."""
    left = False
    try:
        await verb()
    except Unreachable:
        if not await is_down(run, host):
            raise
        left = True

    def write(tx: Tx) -> None:
        also(tx)
        if left:
            leave(tx, run, host, vifs, keep_files=keep_files)

    return Done(host=host, write=write)


async def left_to_dead_hosts(run: Run, error: Exception) -> Done | None:
    """For an operation that a deletion or an evacuation has cancelled: what cannot be undone at a host that
    is down is left to it.  None: nothing of it is."""
    if not isinstance(error, Unreachable) or isinstance(error, DatabaseUnavailable):
        return None
    cloud: Cloud = run.cloud
    server, moves = await cloud.db.read(
        lambda tx: (
            instances.show(tx, run.instance_uuid),
            migrations.page(tx, {"instance_uuid": run.instance_uuid}, limit=1),
        )
    )
    if server is None:
        return None
    names = {server.host, *(each.source_compute for each in moves), *(each.dest_compute for each in moves)}
    down = [name for name in sorted(filter(None, names)) if await host_is_down(cloud, name)]
    if not down:
        return None

    def write(tx: Tx) -> None:
        for name in down:
            leave(tx, run, name, server.vifs)

    log.warning("what cannot be undone is left to hosts that are down", server=server.uuid, hosts=down)
    return Done(write=write)


async def owing(cloud: Cloud, instance_uuid: str) -> dict[str, str]:
    """The hosts to which a server may not go yet, with the reason."""
    found = await cloud.db.read(lambda tx: leftovers.owing(tx, instance_uuid))
    return dict.fromkeys(found, OWES)


# ---- and taken from them ----


async def clear(cloud: Cloud, leftover: Leftover) -> bool:
    """Have a host be rid of something, and note that it is so.  Converges.

    False if it was so before, or is not to be.  Raises what an agent's verbs raise.
    """
    found, server, migration, parked = await cloud.db.read(lambda tx: _look(tx, leftover))
    if found != leftover:
        return False
    if server is None or server.host != leftover.host:
        await _take_away(
            cloud, leftover, keep_files=leftover.keep_files and server is not None, parked=parked
        )
    elif parked:
        await _give_back(cloud, leftover)
    if leftover.migration_uuid is not None:
        await cloud.claims.drop_old(leftover.migration_uuid)
    return await cloud.db.write(lambda tx: _settle(tx, leftover, migration))


def _look(tx: Tx, leftover: Leftover) -> tuple[Leftover | None, Instance | None, Migration | None, bool]:
    """What is owed now, the server if it is alive, the migration that holds what the host gave, and whether
    files of the server can have been put aside there."""
    mine = leftover.migration_uuid
    left = {"instance_uuid": leftover.instance_uuid, "source_compute": leftover.host}
    return (
        leftovers.find(tx, leftover.host, leftover.instance_uuid),
        instances.show(tx, leftover.instance_uuid),
        None if mine is None else migrations.show(tx, mine),
        any(each.migration_type in (RESIZE, MIGRATION) for each in migrations.page(tx, left)),
    )


def _command(leftover: Leftover, verb: str) -> Command:
    """What a later operation has brought there is refused by the agent."""
    return Command(
        id=f"leftover.{leftover.action}.{leftover.host}.{leftover.instance_uuid}.{verb}",
        action=leftover.action,
        epoch=LAST_EPOCH,
    )


async def _give_back(cloud: Cloud, leftover: Leftover) -> None:
    """A move that was given up while the host could not be asked had put the server's files aside, and the
    server is still there: they are where they were again, so that it can be started."""
    mover, uuid = cloud.hosts.mover(leftover.host), leftover.instance_uuid
    await mover.unpark(_command(leftover, "unpark"), uuid)
    log.info("what had been put aside is back", server=uuid, host=leftover.host)


async def _take_away(cloud: Cloud, leftover: Leftover, *, keep_files: bool, parked: bool) -> None:
    """In the order of a deletion."""
    agent, uuid = cloud.hosts.agent(leftover.host), leftover.instance_uuid
    command = partial(_command, leftover)
    await agent.destroy(command("destroy"), uuid)
    if leftover.vifs:
        await agent.unplug(command("unplug"), uuid, leftover.vifs)
    if keep_files:
        return
    await agent.discard(command("discard"), uuid)
    if parked:
        await cloud.hosts.mover(leftover.host).drop_parked(command("drop_parked"), uuid)


def _settle(tx: Tx, leftover: Leftover, migration: Migration | None) -> bool:
    settled = leftovers.settle(tx, leftover)
    if settled and migration is not None and migration.migration_type == EVACUATION:
        migrations.update(tx, migration.uuid, expect=(Status.DONE,), status=Status.COMPLETED)
    return settled


async def release_of(cloud: Cloud, host: str) -> None:
    """The host is taken out of the cloud: what it gave for servers that have left is nobody's any more.

    Should it come back under its name, it still has to be rid of them.
    """
    for leftover in await cloud.db.read(lambda tx: leftovers.of_host(tx, host)):
        if leftover.migration_uuid is not None:
            await cloud.claims.drop_old(leftover.migration_uuid)


class Clearing:
    """Rids hosts of what they owe, when they can be heard; ``start`` it in each controller.

    A host that hangs holds up no other one.
    """

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._soon = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._tasks: dict[str, asyncio.Task[int]] = {}

    def start(self) -> None:
        self._loop = asyncio.create_task(self._again(), name="leftovers")

    async def stop(self) -> None:
        tasks: list[asyncio.Task[object]] = [*self._tasks.values()]
        if self._loop is not None:
            tasks.append(self._loop)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def soon(self) -> None:
        """A host has just been heard of."""
        self._soon.set()

    async def look(self) -> int:
        """Have every host that can be heard be rid of what it owes; how much that was, when all are done."""
        await self._begin()
        return sum(await asyncio.gather(*self._tasks.values()))

    async def _begin(self) -> None:
        for host in await self._who():
            if host not in self._tasks:
                task = asyncio.create_task(self._clear(host), name=f"leftovers of {host}")
                self._tasks[host] = task
                task.add_done_callback(partial(self._done, host))

    def _done(self, host: str, task: asyncio.Task[int]) -> None:
        self._tasks.pop(host, None)

    async def _who(self) -> list[str]:
        cloud = self._cloud
        names = await cloud.db.read(leftovers.hosts)
        if not names:
            return []
        known = await cloud.top.read(lambda tx: [hosts.show(tx, name) for name in names])
        return [each.host for each in known if each is not None and _is_heard(cloud, each.last_seen_at)]

    async def _clear(self, host: str) -> int:
        owed = await self._cloud.db.read(lambda tx: leftovers.of_host(tx, host))
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(leftover: Leftover) -> bool:
            async with turns:
                return await self._one(leftover)

        return sum(await asyncio.gather(*(one(each) for each in owed)))

    async def _one(self, leftover: Leftover) -> bool:
        of = {"host": leftover.host, "server": leftover.instance_uuid}
        try:
            cleared = await clear(self._cloud, leftover)
        except LostLease as error:
            log.error("a host has heard of a later operation on what it owes", **of, error=str(error))
            return False
        except KilonovaError as error:
            log.warning("a host could not be cleared yet", **of, error=str(error))
            return False
        except Exception:
            log.error("a host could not be cleared", **of, exc_info=True)
            return False
        if cleared:
            log.info("a host is rid of what it had of a server", **of)
        return cleared

    async def _again(self) -> None:
        while True:
            self._soon.clear()
            try:
                await self._begin()
            except Exception:
                log.error("cannot look for what hosts owe", exc_info=True)
            await set_within(EVERY, self._cloud.clock, self._soon)
