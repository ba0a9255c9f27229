"""Deleting a server, in whatever phase it is.

Forward only: what is being done to the server is cancelled and undoes itself, then everything that it
has is taken away, step by step, until nothing is left.
"""

from __future__ import annotations

import dataclasses

from kilonova.db import instance_mappings, instances, quotas, server_groups
from kilonova.db.engine import Tx
from kilonova.errors import Unreachable
from kilonova.journal.model import DONE, Done, Kind, Operation, Run, Step, StoredError
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.states import Task
from kilonova.operations import guards, host_steps, shelved_image
from kilonova.operations.attachments import free_volumes
from kilonova.operations.begin import found
from kilonova.operations.cloud import Cloud
from kilonova.operations.leftovers import is_down, leave, undone_at
from kilonova.operations.resize_end import forget_moves
from kilonova.operations.steps import (
    NoParams,
    agent_of,
    apply,
    command,
    host_of,
    in_error,
    instance_of,
)


async def submit(cloud: Cloud, context: RequestContext, uuid: str, *, guard: str = "delete") -> None:
    """Accept the deletion.  A repeat is accepted and does nothing, as in Nova.

    Raises NotFound, or Conflict for a locked server.
    """

    def write(tx: Tx) -> None:
        instance = found(tx, uuid)
        rule = guards.check(guard, instance, context)
        changed = False
        while not changed:  # again when somebody is faster: a deletion wins over all but another deletion
            if instance.task_state == Task.DELETING and cloud.journal.is_busy(tx, uuid):
                return
            changed = instances.update(
                tx, uuid, expect_task=(instance.task_state,), task_state=Task.DELETING, progress=0
            )
            if not changed:
                instance = found(tx, uuid)
        cloud.journal.cancel(tx, uuid, but=DELETE.name)
        cloud.journal.submit(tx, context, DELETE, uuid, rule.action, NoParams())

    await cloud.db.write(write)
    if cloud.cell_uuid is not None:
        await cloud.top.write(lambda tx: instance_mappings.queue_for_delete(tx, uuid, True))


async def _destroy(run: Run) -> Done:
    """A host that is down is not waited for (Nova's local delete): it is rid of the guest when it is back."""
    instance = await instance_of(run)
    if instance.host is None:
        return DONE
    host = instance.host
    if await is_down(run, host):
        return _left(run, host, instance)
    try:
        await agent_of(run, host).destroy(command(run, "destroy"), instance.uuid)
    except Unreachable:
        if not await is_down(run, host):
            raise
        return _left(run, host, instance)
    return Done(host=host)


LEFT = "left"


def _left(run: Run, host: str, instance: Instance) -> Done:
    return Done(output=LEFT, host=host, write=lambda tx: leave(tx, run, host, instance.vifs))


async def _unplug(run: Run) -> Done:
    instance = await instance_of(run)
    host = instance.host
    if host is None or not instance.vifs or run.output("destroy") == LEFT:
        return DONE
    return await undone_at(
        run,
        host,
        lambda: agent_of(run, host).unplug(command(run, "unplug"), instance.uuid, instance.vifs),
        instance.vifs,
    )


async def _discard(run: Run) -> Done:
    return DONE if run.output("destroy") == LEFT else await host_steps.discard(run)


async def _free_ports(run: Run) -> Done:
    """And part with its volumes, in the same commit: few servers have any."""
    await run.cloud.network.deallocate(run.instance_uuid)
    freed = await free_volumes(run)
    return dataclasses.replace(freed, changes={**freed.changes, "vifs": ()})


async def _finish(run: Run) -> Done:
    """Give back the claim and the quota, remove what a shelved server was kept in, and hide the row: the last
    commit."""
    cloud: Cloud = run.cloud
    instance = await instance_of(run)
    await shelved_image.remove(cloud, instance)
    moved = await forget_moves(run, None if run.output("destroy") == LEFT else instance.host)
    await cloud.claims.release_server(instance)
    now = cloud.clock.now()
    elsewhere = cloud.cell_uuid is not None
    if elsewhere:
        await cloud.top.write(lambda tx: _give_back_once(tx, instance))

    def write(tx: Tx) -> None:
        moved(tx)
        if instances.mark_deleted(tx, instance.uuid, now) and not elsewhere:
            _give_back(tx, instance)
            if instance.residence:  # it has been in another cell, and is mapped
                instance_mappings.mark_gone(tx, instance.uuid)
        cloud.journal.drop_signals(tx, instance.uuid)

    return Done(write=write)


def _give_back(tx: Tx, instance: Instance) -> None:
    """What the server had in the top database: its quota, and its place in a server group."""
    flavor = instance.flavor
    if "group" in instance.hints:
        server_groups.forget_member(tx, instance.uuid)
    quotas.give_back(
        tx,
        instance.project_id,
        instance.user_id,
        instances=1,
        cores=flavor.vcpus,
        ram=flavor.memory_mb,
    )


def _give_back_once(tx: Tx, instance: Instance) -> None:
    """The quota is in another database than the server: its mapping says whether it was given back."""
    if instance_mappings.mark_gone(tx, instance.uuid):
        _give_back(tx, instance)


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    """A delete is never undone, but an operator may have abandoned it: it can then be asked for again."""
    in_error(tx, run, error)


DELETE = Operation(
    name="delete",
    steps=(
        Step("destroy", _destroy, kind=Kind.RETRIABLE, event="compute_terminate_instance"),
        Step("unplug", _unplug, kind=Kind.RETRIABLE, event="compute_unplug_vifs"),
        Step("discard", _discard, kind=Kind.RETRIABLE, event="compute_delete_disks"),
        Step("ports", _free_ports, kind=Kind.RETRIABLE, event="compute_deallocate_network"),
        Step("finish", _finish, kind=Kind.RETRIABLE, event="conductor_destroy_instance"),
    ),
    params=NoParams,
    apply=apply,
    failed=_failed,
    deadline=600.0,
    host_of=host_of,
)
