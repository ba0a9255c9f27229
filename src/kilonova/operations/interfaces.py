"""What attaching and detaching of a network interface share.  Neither sets a task_state, as in Nova: what is
asked of the server meanwhile waits for its turn in the journal.
"""

from __future__ import annotations

import msgspec

from kilonova.db import instances, migration_contexts
from kilonova.db.engine import Tx
from kilonova.errors import Unreachable
from kilonova.journal.model import Done, Run, StoredError
from kilonova.model.port import Vif
from kilonova.operations.leftovers import is_down, leave
from kilonova.operations.steps import agent_of, apply, command, fault_of, guest_of, instance_of
from kilonova.rpc.messages import GuestSpec


async def host_of_server(run: Run) -> str:
    instance = await instance_of(run)
    assert instance.host is not None
    return instance.host


async def has_port(run: Run, port_id: str) -> bool:
    """Whether the port is the server's now, whatever it was when this was asked for."""
    found = await run.cloud.db.read(lambda tx: instances.show(tx, run.instance_uuid))
    return found is not None and any(vif.port_id == port_id for vif in found.vifs)


async def bare_guest(run: Run) -> GuestSpec:
    """The guest without what only making it needs."""
    return msgspec.structs.replace(await guest_of(run, await instance_of(run)), config_drive=None)


async def attached(run: Run, vif: Vif, step: str) -> Done:
    """Give the guest a network card for the port, unless it has it."""
    host = await host_of_server(run)
    await agent_of(run, host).attach_interface(command(run, step), await bare_guest(run), vif)
    return Done(host=host)


async def detached(run: Run, vif: Vif, step: str) -> Done:
    """Take the port's network card from the guest, if it has it."""
    host = await host_of_server(run)
    await agent_of(run, host).detach_interface(command(run, step), await bare_guest(run), vif)
    return Done(host=host)


async def unplugged(run: Run, vif: Vif) -> Done:
    """Take the port off the switch.

    A host that is down is waited for, unless somebody waits for the end of this: then it owes that.
    """
    host = await host_of_server(run)
    try:
        await agent_of(run, host).unplug(command(run, "unplug"), run.instance_uuid, (vif,))
    except Unreachable:
        if not (await _is_cancelled(run) and await is_down(run, host)):
            raise
        return Done(host=host, write=lambda tx: leave(tx, run, host, (vif,)))
    return Done(host=host)


async def _is_cancelled(run: Run) -> bool:
    """Asked of the database: past the point of no return nobody else tells."""
    cloud = run.cloud
    return run.action.cancel or await cloud.db.read(lambda tx: cloud.journal.is_cancelled(tx, run.action.id))


async def noted(run: Run) -> Done:
    """The server's row has the ports that it has now, and so has a move that waits for our end."""
    network = run.cloud.network
    vifs: tuple[Vif, ...] = await network.vifs(run.instance_uuid)
    groups = await network.security_groups(run.instance_uuid)

    def write(tx: Tx) -> None:
        for migration in migration_contexts.of_instance(tx, run.instance_uuid):
            context = migration_contexts.show(tx, migration)
            if context is not None:
                now = msgspec.structs.replace(context, old_vifs=vifs)
                migration_contexts.put(tx, migration, run.instance_uuid, now)

    return Done(changes={"vifs": vifs, "security_groups": groups}, write=write)


def failed(tx: Tx, run: Run, error: StoredError) -> None:
    """The server stays as it was, with the fault noted; another operation may be at it by now."""
    if not error.cancelled:
        apply(tx, run, {"fault": fault_of(error, run.cloud.clock.now())})
