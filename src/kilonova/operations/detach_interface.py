"""Detaching a network interface: the guest lets go of it, the port is unplugged, and given back or deleted.

A guest that keeps it keeps the port, too.  Once it has let go there is no way back, and none is needed.
"""

from __future__ import annotations

import msgspec

from kilonova.db.engine import Tx
from kilonova.errors import NotFound
from kilonova.journal.model import DONE, Done, Kind, Operation, Run, Step, StoredError
from kilonova.model.context import RequestContext
from kilonova.model.instance import Instance
from kilonova.model.port import Vif
from kilonova.operations import interfaces
from kilonova.operations.begin import taken
from kilonova.operations.cloud import Cloud
from kilonova.operations.steps import apply, host_of


class DetachParams(msgspec.Struct, frozen=True, kw_only=True):
    """``gone``: the port itself was deleted, and is only still in the guest and on the switch."""

    vif: Vif
    gone: bool = False


async def submit(cloud: Cloud, context: RequestContext, uuid: str, port_id: str) -> None:
    """Raises NotFound, also for a port that the server does not have, or Conflict for its state."""

    def write(tx: Tx) -> None:
        found: list[Vif] = []

        def has_it(tx: Tx, instance: Instance) -> None:
            found.extend(vif for vif in instance.vifs if vif.port_id == port_id)
            if not found:
                raise NotFound(f"Port {port_id} is not attached to instance {uuid}.")

        instance, guard = taken(tx, context, uuid, "detach_interface", also=has_it)
        params, known = DetachParams(vif=found[0]), {"instance": instance}
        cloud.journal.submit(tx, context, DETACH_INTERFACE, uuid, guard.action, params, known)

    await cloud.db.write(write)


def submit_for_deleted_port(tx: Tx, cloud: Cloud, instance: Instance, vif: Vif) -> None:
    """Take from a server what is left of a port that was deleted (MG-DEV-11).  Raises Conflict."""
    context = RequestContext(
        request_id=f"req-{cloud.new_uuid()}",
        user_id=instance.user_id,
        project_id=instance.project_id,
        roles=frozenset({"admin"}),
    )
    _, guard = taken(tx, context, instance.uuid, "detach_interface")
    params = DetachParams(vif=vif, gone=True)
    cloud.journal.submit(tx, context, DETACH_INTERFACE, instance.uuid, guard.action, params)


async def _detach(run: Run) -> Done:
    """Raises NotFound for what was detached meanwhile: the port may be another server's by now."""
    vif = run.params.vif
    if not (run.params.gone or await interfaces.has_port(run, vif.port_id)):
        raise NotFound(f"Port {vif.port_id} is not attached to instance {run.instance_uuid} any more.")
    return await interfaces.detached(run, vif, "detach")


async def _reattach(run: Run) -> Done:
    """What the guest may have let go of by now; and its definition, where that has lost it."""
    if run.params.gone or not await interfaces.has_port(run, run.params.vif.port_id):
        return DONE
    return await interfaces.attached(run, run.params.vif, "attach")


async def _unplug(run: Run) -> Done:
    return await interfaces.unplugged(run, run.params.vif)


async def _release(run: Run) -> Done:
    await run.cloud.network.release(run.instance_uuid, run.params.vif.port_id)
    return await interfaces.noted(run)


def _failed(tx: Tx, run: Run, error: StoredError) -> None:
    if not run.params.gone:  # that is nothing that the user has asked for
        interfaces.failed(tx, run, error)


DETACH_INTERFACE = Operation(
    name="detach_interface",
    steps=(
        Step("detach", _detach, _reattach, event="compute_detach_interface"),
        Step("unplug", _unplug, kind=Kind.RETRIABLE, event="compute_unplug_vifs"),
        Step("release", _release, kind=Kind.RETRIABLE, event="compute_deallocate_port"),
    ),
    params=DetachParams,
    apply=apply,
    failed=_failed,
    deadline=600.0,
    host_of=host_of,
)
