"""The order of a list of servers: ``sort_key`` and ``sort_dir``, which may be repeated."""

from __future__ import annotations

from kilonova.api.call import Call
from kilonova.errors import Forbidden, Invalid

DEFAULT: tuple[tuple[str, bool], ...] = (("created_at", True), ("id", True))

ADMIN_ONLY = frozenset({"host", "node"})
_COLUMNS = frozenset(
    [
        "access_ip_v4",
        "access_ip_v6",
        "availability_zone",
        "config_drive",
        "created_at",
        "display_description",
        "display_name",
        "host",
        "hostname",
        "image_ref",
        "key_name",
        "launch_index",
        "launched_at",
        "node",
        "power_state",
        "progress",
        "project_id",
        "root_device_name",
        "task_state",
        "terminated_at",
        "updated_at",
        "user_id",
        "uuid",
        "vm_state",
    ]
)
_RENAMED = {"instance_type_id": "flavor", "locked_by": "locked"}
_SAME_FOR_ALL = frozenset({"auto_disk_config", "kernel_id", "ramdisk_id"})
_IGNORED = frozenset(
    [
        "architecture",
        "cell_name",
        "cleaned",
        "default_ephemeral_device",
        "default_swap_device",
        "deleted",
        "deleted_at",
        "disable_terminate",
        "ephemeral_gb",
        "ephemeral_key_uuid",
        "id",
        "key_data",
        "launched_on",
        "locked",
        "memory_mb",
        "os_type",
        "reservation_id",
        "root_gb",
        "shutdown_terminate",
        "user_data",
        "vcpus",
        "vm_mode",
    ]
)
"""Accepted, and without effect, as in Nova."""


def sort_of(call: Call) -> tuple[tuple[str, bool], ...]:
    """(column, descending) in their order; the newest first if nothing is asked.

    Raises Invalid for an unknown key or direction, Forbidden for a key that only administrators may use.
    """
    keys = call.query.every("sort_key")
    directions = call.query.every("sort_dir")
    if not keys and not directions:
        return DEFAULT
    for direction in directions:
        if direction not in ("asc", "desc"):
            raise Invalid(
                f"Invalid input for query parameters sort_dir. Value: {direction}. It is neither asc nor desc"
            )
    if len(directions) > max(len(keys), 1):
        raise Invalid("Sort direction array size exceeds sort key array size.")
    descending = [direction == "desc" for direction in directions] or [True]
    descending += [descending[0]] * (len(keys) - len(descending))
    result: dict[str, bool] = {}
    for key, down in zip(keys or ["created_at"], descending, strict=True):
        column = _column(call, key)
        if column is not None:
            result.setdefault(column, down)
    if not result:
        return DEFAULT
    result.setdefault("id", next(reversed(result.values())))
    return tuple(result.items())


def _column(call: Call, key: str) -> str | None:
    if key == "locked" and call.version >= 73:
        return "locked"
    if key in _IGNORED or key in _SAME_FOR_ALL:
        return None
    if key in ADMIN_ONLY and not call.context.is_admin:
        raise Forbidden(f"Only administrators can sort servers by {key}")
    if key in _RENAMED:
        return _RENAMED[key]
    if key not in _COLUMNS:
        raise Invalid(f"Invalid input for query parameters sort_key. Value: {key}. It is no sort key.")
    return key
