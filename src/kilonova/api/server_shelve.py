"""``shelve``, ``shelveOffload`` and ``unshelve``."""

from __future__ import annotations

from msgspec import UNSET

from kilonova.api.call import Call
from kilonova.api.routes import server_action
from kilonova.api.schema import server_shelve as schema
from kilonova.api.server_found import server_of, target_of
from kilonova.operations import offload as offload_operation
from kilonova.operations import shelve as shelve_operation
from kilonova.operations import unshelve as unshelve_operation

TO_HOST = "os_compute_api:os-shelve:unshelve_to_host"
ZONE_OR_NONE = 91


async def shelve(call: Call) -> None:
    instance = await server_of(call)
    await shelve_operation.submit(call.cloud, call.context, instance.uuid)


async def offload(call: Call) -> None:
    instance = await server_of(call)
    await offload_operation.submit(call.cloud, call.context, instance.uuid)


async def unshelve(call: Call) -> None:
    """From 2.77 on to a zone, from 2.91 on to a host or to no zone in particular."""
    body: schema.Unshelve = call.body
    asked = body.unshelve
    instance = await server_of(call)
    zone: unshelve_operation.Zone = UNSET
    host = None
    if asked is not None:
        zone, host = asked.zone if call.version >= ZONE_OR_NONE else asked.first_zone, asked.host
    if host is not None:
        call.allow(TO_HOST, target_of(instance))
    await unshelve_operation.submit(call.cloud, call.context, instance.uuid, zone=zone, host=host)


ROUTES = (
    server_action("shelve", shelve, "os-shelve:shelve", schema.Shelve),
    server_action("shelveOffload", offload, "os-shelve:shelve_offload", schema.ShelveOffload),
    server_action("unshelve", unshelve, "os-shelve:unshelve", schema.Unshelve),
)
