"""The two hosts of a resize or a cold migration: which they are, what their faults mean, the guest there."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from kilonova.clock import SECOND
from kilonova.errors import Failed, HostFault, TryAgain, Unreachable
from kilonova.journal.model import Run
from kilonova.model.migration import Migration, MigrationContext
from kilonova.model.states import Power, Vm
from kilonova.operations.leftovers import is_down
from kilonova.operations.moving import context_of, migration_of, new_guest
from kilonova.operations.steps import agent_of, command
from kilonova.rpc.messages import GuestSpec, Observed

PATIENCE = 300  # seconds for which a step is repeated without getting on


async def ends(run: Run) -> tuple[str, str]:
    """The source and the destination, which may be one host."""
    migration = await migration_of(run)
    if migration.source_compute is None or migration.dest_compute is None:
        raise Failed(f"Migration {migration.uuid} does not know from where to where.")
    return migration.source_compute, migration.dest_compute


def concerned(run: Run) -> str | None:
    """The host that may be at fault: the one that was chosen."""
    migration: Migration | None = run.known.get("migration")
    return None if migration is None else migration.dest_compute


@contextlib.asynccontextmanager
async def at_source(run: Run, host: str) -> AsyncIterator[None]:
    """Work that no other host can do: what is wrong there is wrong with the whole move."""
    try:
        yield
    except HostFault as error:
        raise Failed(f"The host {host} of the server: {error}") from error
    except TryAgain as error:
        if await _given_up(run, host, error):
            raise Failed(f"The host {host} of the server does not do its part: {error}") from error
        raise


@contextlib.asynccontextmanager
async def at_destination(run: Run, host: str) -> AsyncIterator[None]:
    """Work that another host may do instead: one that goes down, or does not get on, is given up."""
    try:
        yield
    except TryAgain as error:
        if await _given_up(run, host, error):
            raise HostFault(f"The host {host} does not do its part: {error}") from error
        raise


@contextlib.asynccontextmanager
async def failed_if_down(run: Run, host: str) -> AsyncIterator[None]:
    """Work that two hosts do together: all else is laid to the other one."""
    try:
        yield
    except Unreachable as error:
        if await is_down(run, host):
            raise Failed(f"The host {host} of the server has gone down.") from error
        raise


async def _given_up(run: Run, host: str, error: TryAgain) -> bool:
    """A server that moves is off: it does not wait for long for a host that answers and gets nothing done."""
    now = run.cloud.clock.now()
    since = run.known.setdefault(_since(run), now)
    late = bool(now - since > PATIENCE * SECOND)
    return late or (isinstance(error, Unreachable) and await is_down(run, host))


def gets_on(run: Run) -> None:
    """The step that is repeated has done a part of its work."""
    run.known.pop(_since(run), None)


def _since(run: Run) -> str:
    return f"since when {run.action.plan[run.action.cursor]} of round {run.action.round} is repeated"


def ran(context: MigrationContext) -> bool:
    return context.old_vm_state != Vm.STOPPED


async def destination_guest(run: Run) -> GuestSpec:
    return await new_guest(run, (await context_of(run)).new_vifs)


async def have_again(run: Run, step: str, host: str, guest: GuestSpec, *, running: bool) -> Observed:
    """Have a guest of which the files are at a host run there again, or be off and defined.  Converges."""
    agent = agent_of(run, host)
    if not running:
        seen = await agent.observe(guest.uuid)
        if seen.power_state != Power.NOSTATE:
            return seen
    await agent.plug(command(run, f"{step}.plug"), guest)
    if running:
        return await agent.start(command(run, f"{step}.start"), guest, paused=False)
    await agent.start(command(run, f"{step}.start"), guest, paused=True)
    return await agent.shut_down(command(run, f"{step}.shut_down"), guest.uuid, timeout=0, clean=False)
