"""``resize``, ``migrate``, ``confirmResize`` and ``revertResize``."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.api.routes import server_action
from kilonova.api.schema import server_resize as schema
from kilonova.api.server_found import server_of, target_of
from kilonova.operations import confirm_resize as confirm_operation
from kilonova.operations import resize as resize_operation
from kilonova.operations import revert_resize as revert_operation
from kilonova.operations.cross_cell import POLICY

TO_HOST = "os_compute_api:os-migrate-server:migrate:host"


async def resize(call: Call) -> None:
    body: schema.Resize = call.body
    instance = await server_of(call)
    asked = body.resize
    await resize_operation.resize(
        call.cloud,
        call.context,
        instance,
        asked.flavor,
        disk_config=asked.disk_config,
        across=call.may(POLICY, target_of(instance)),
    )


async def migrate(call: Call) -> None:
    """From 2.56 on to a host that is named."""
    body: schema.Migrate = call.body
    instance = await server_of(call)
    host = body.migrate.host if call.version >= schema.NAMES_HOST and body.migrate is not None else None
    if host is not None:
        call.allow(TO_HOST, target_of(instance))
    across = call.may(POLICY, target_of(instance))
    await resize_operation.migrate(call.cloud, call.context, instance, host=host, across=across)


async def confirm(call: Call) -> None:
    instance = await server_of(call)
    await confirm_operation.submit(call.cloud, call.context, instance.uuid)


async def revert(call: Call) -> None:
    instance = await server_of(call)
    await revert_operation.submit(call.cloud, call.context, instance.uuid)


ROUTES = (
    server_action("resize", resize, "servers:resize", schema.Resize),
    server_action("migrate", migrate, "os-migrate-server:migrate", schema.Migrate),
    server_action("confirmResize", confirm, "servers:confirm_resize", schema.ConfirmResize, 204),
    server_action("revertResize", revert, "servers:revert_resize", schema.RevertResize),
)
