"""The steps in which a server comes to the host that was chosen for it, whether it is new or was shelved.

A host that goes down meanwhile is given up for another one, and what it has by then is left to it.
"""

from __future__ import annotations

from kilonova.journal.model import DONE, Done, Run, Wait
from kilonova.model.states import Power
from kilonova.operations.leftovers import another_if_down, undone_at
from kilonova.operations.steps import agent_of, command, guest_of, instance_of, until_wired_at
from kilonova.rpc.messages import Observed


async def plug(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    async with another_if_down(run, instance.host):
        await agent_of(run, instance.host).plug(command(run, "plug"), await guest_of(run, instance))
    return Done(host=instance.host)


async def unplug(run: Run) -> Done:
    instance, journal = await instance_of(run), run.cloud.journal
    host = instance.host
    if host is None:
        return Done(write=lambda tx: journal.drop_signals(tx, run.instance_uuid))
    return await undone_at(
        run,
        host,
        lambda: agent_of(run, host).unplug(command(run, "unplug"), instance.uuid, instance.vifs),
        instance.vifs,
        also=lambda tx: journal.drop_signals(tx, run.instance_uuid),
    )


async def discard(run: Run) -> Done:
    instance = await instance_of(run)
    host = instance.host
    if host is None:
        return DONE
    return await undone_at(
        run,
        host,
        lambda: agent_of(run, host).discard(command(run, "discard"), instance.uuid),
        instance.vifs,
    )


async def start(run: Run) -> Done:
    instance = await instance_of(run)
    assert instance.host is not None
    guest = await guest_of(run, instance)
    async with another_if_down(run, instance.host):
        observed = await agent_of(run, instance.host).start(command(run, "start"), guest, paused=True)
    return Done(host=instance.host, changes={"observed": observed})


async def resumed(run: Run) -> tuple[str, Observed]:
    """Let the guest go on, now that it is wired; the host, and what it has of the guest then."""
    instance = await instance_of(run)
    assert instance.host is not None
    async with another_if_down(run, instance.host):
        return instance.host, await agent_of(run, instance.host).resume(command(run, "resume"), instance.uuid)


async def destroy(run: Run) -> Done:
    instance = await instance_of(run)
    host = instance.host
    off = {"power_state": Power.NOSTATE}
    if host is None:
        return Done(changes=off)
    done = await undone_at(
        run,
        host,
        lambda: agent_of(run, host).destroy(command(run, "destroy"), instance.uuid),
        instance.vifs,
    )
    return Done(host=host, changes=off, write=done.write)


async def wired(run: Run) -> Done | Wait:
    instance = await instance_of(run)
    assert instance.host is not None
    return await until_wired_at(run, instance.host, instance.vifs)
