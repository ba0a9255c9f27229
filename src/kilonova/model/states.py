"""THE table: which states there are, what may be done in which of them, and how they look from outside.

Facts are Nova's (compute/vm_states, task_states, power_state, api guards); guards in the API, the
documentation and the tests are all made from here.
"""

from __future__ import annotations

import msgspec


class Vm:
    """vm_state: what has been reached."""

    BUILDING = "building"
    ACTIVE = "active"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    STOPPED = "stopped"
    RESCUED = "rescued"
    RESIZED = "resized"
    SOFT_DELETED = "soft-delete"
    DELETED = "deleted"
    ERROR = "error"
    SHELVED = "shelved"
    SHELVED_OFFLOADED = "shelved_offloaded"


VM_STATES = tuple(value for name, value in vars(Vm).items() if name.isupper())


class Task:
    """task_state: what is being done.  None: nothing."""

    SCHEDULING = "scheduling"
    NETWORKING = "networking"
    BLOCK_DEVICE_MAPPING = "block_device_mapping"
    SPAWNING = "spawning"
    IMAGE_SNAPSHOT_PENDING = "image_snapshot_pending"
    IMAGE_SNAPSHOT = "image_snapshot"
    IMAGE_PENDING_UPLOAD = "image_pending_upload"
    IMAGE_UPLOADING = "image_uploading"
    IMAGE_BACKUP = "image_backup"
    UPDATING_PASSWORD = "updating_password"
    RESIZE_PREP = "resize_prep"
    RESIZE_MIGRATING = "resize_migrating"
    RESIZE_MIGRATED = "resize_migrated"
    RESIZE_FINISH = "resize_finish"
    RESIZE_REVERTING = "resize_reverting"
    RESIZE_CONFIRMING = "resize_confirming"
    REBOOTING = "rebooting"
    REBOOT_PENDING = "reboot_pending"
    REBOOT_STARTED = "reboot_started"
    REBOOTING_HARD = "rebooting_hard"
    REBOOT_PENDING_HARD = "reboot_pending_hard"
    REBOOT_STARTED_HARD = "reboot_started_hard"
    PAUSING = "pausing"
    UNPAUSING = "unpausing"
    SUSPENDING = "suspending"
    RESUMING = "resuming"
    POWERING_OFF = "powering-off"
    POWERING_ON = "powering-on"
    RESCUING = "rescuing"
    UNRESCUING = "unrescuing"
    REBUILDING = "rebuilding"
    REBUILD_BLOCK_DEVICE_MAPPING = "rebuild_block_device_mapping"
    REBUILD_SPAWNING = "rebuild_spawning"
    MIGRATING = "migrating"
    DELETING = "deleting"
    SOFT_DELETING = "soft-deleting"
    RESTORING = "restoring"
    SHELVING = "shelving"
    SHELVING_IMAGE_PENDING_UPLOAD = "shelving_image_pending_upload"
    SHELVING_IMAGE_UPLOADING = "shelving_image_uploading"
    SHELVING_OFFLOADING = "shelving_offloading"
    UNSHELVING = "unshelving"


TASK_STATES = tuple(value for name, value in vars(Task).items() if name.isupper())


class Power:
    """power_state: what the hypervisor reports.  2 and 5 are unused, as in Nova."""

    NOSTATE = 0
    RUNNING = 1
    PAUSED = 3
    SHUTDOWN = 4
    CRASHED = 6
    SUSPENDED = 7


POWER_NAMES = {0: "pending", 1: "running", 3: "paused", 4: "shutdown", 6: "crashed", 7: "suspended"}

_REBUILD = (Task.REBUILDING, Task.REBUILD_BLOCK_DEVICE_MAPPING, Task.REBUILD_SPAWNING)
_RESIZE = (Task.RESIZE_PREP, Task.RESIZE_MIGRATING, Task.RESIZE_MIGRATED, Task.RESIZE_FINISH)

# vm_state -> (the status, and the exceptions by task_state)
STATUS: dict[str, tuple[str, dict[str, str]]] = {
    Vm.BUILDING: ("BUILD", {}),
    Vm.ACTIVE: (
        "ACTIVE",
        {
            Task.REBOOTING: "REBOOT",
            Task.REBOOT_PENDING: "REBOOT",
            Task.REBOOT_STARTED: "REBOOT",
            Task.REBOOTING_HARD: "HARD_REBOOT",
            Task.REBOOT_PENDING_HARD: "HARD_REBOOT",
            Task.REBOOT_STARTED_HARD: "HARD_REBOOT",
            Task.UPDATING_PASSWORD: "PASSWORD",
            Task.MIGRATING: "MIGRATING",
            **dict.fromkeys(_REBUILD, "REBUILD"),
            **dict.fromkeys(_RESIZE, "RESIZE"),
        },
    ),
    Vm.STOPPED: ("SHUTOFF", {**dict.fromkeys(_RESIZE, "RESIZE"), **dict.fromkeys(_REBUILD, "REBUILD")}),
    Vm.RESIZED: ("VERIFY_RESIZE", {Task.RESIZE_REVERTING: "REVERT_RESIZE"}),
    Vm.PAUSED: ("PAUSED", {Task.MIGRATING: "MIGRATING"}),
    Vm.SUSPENDED: ("SUSPENDED", {}),
    Vm.RESCUED: ("RESCUE", {}),
    Vm.ERROR: ("ERROR", dict.fromkeys(_REBUILD, "REBUILD")),
    Vm.DELETED: ("DELETED", {}),
    Vm.SOFT_DELETED: ("SOFT_DELETED", {}),
    Vm.SHELVED: ("SHELVED", {}),
    Vm.SHELVED_OFFLOADED: ("SHELVED_OFFLOADED", {}),
}

UNKNOWN = "UNKNOWN"


def status(vm_state: str, task_state: str | None) -> str:
    """The server's ``status`` field."""
    found = STATUS.get(vm_state)
    if found is None:
        return UNKNOWN
    default, by_task = found
    return by_task.get(task_state, default) if task_state else default


def states_of(wanted: str) -> list[tuple[str, tuple[str, ...] | None]]:
    """The pairs (vm_state, task_states) that show as this status, ignoring case; task_states None: any.

    Empty for a word that is no status.
    """
    wanted = wanted.upper()
    result: list[tuple[str, tuple[str, ...] | None]] = []
    for vm_state, (default, by_task) in STATUS.items():
        if default == wanted:
            result.append((vm_state, None))
        else:
            tasks = tuple(task for task, shown in by_task.items() if shown == wanted)
            if tasks:
                result.append((vm_state, tasks))
    return result


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """When an operation may begin.  ``None`` as a set means any; a task set may hold None for idle."""

    operation: str
    vm: frozenset[str] | None
    task: frozenset[str | None] | None = frozenset({None})
    launched: bool = True  # launched_at must be set
    lock: bool = True  # a locked server refuses it, but for administrators
    host: bool = False  # the server must be on a host
    sets: str | None = None  # the task_state from then on
    action: str = ""  # name of the instance action
    policy: str = ""


_HARD_REBOOT_TASKS: frozenset[str | None] = frozenset(
    {
        None,
        Task.REBOOTING,
        Task.REBOOT_PENDING,
        Task.REBOOT_STARTED,
        Task.REBOOTING_HARD,
        Task.RESUMING,
        Task.UNPAUSING,
        Task.PAUSING,
        Task.SUSPENDING,
    }
)

GUARDS: dict[str, Guard] = {
    guard.operation: guard
    for guard in (
        Guard(
            operation="create",
            vm=frozenset(),
            launched=False,
            lock=False,
            sets=Task.SCHEDULING,
            action="create",
            policy="os_compute_api:servers:create",
        ),
        Guard(
            operation="delete",
            vm=None,
            task=None,
            launched=False,
            sets=Task.DELETING,
            action="delete",
            policy="os_compute_api:servers:delete",
        ),
        Guard(
            operation="force_delete",
            vm=None,
            task=None,
            launched=False,
            sets=Task.DELETING,
            action="delete",
            policy="os_compute_api:os-deferred-delete:force",
        ),
        Guard(
            operation="stop",
            vm=frozenset({Vm.ACTIVE, Vm.ERROR}),
            host=True,
            sets=Task.POWERING_OFF,
            action="stop",
            policy="os_compute_api:servers:stop",
        ),
        Guard(
            operation="start",
            vm=frozenset({Vm.STOPPED}),
            host=True,
            sets=Task.POWERING_ON,
            action="start",
            policy="os_compute_api:servers:start",
        ),
        Guard(
            operation="reboot",
            vm=frozenset({Vm.ACTIVE}),
            sets=Task.REBOOTING,
            action="reboot",
            policy="os_compute_api:servers:reboot",
        ),
        Guard(
            operation="reboot_hard",
            vm=frozenset({Vm.ACTIVE, Vm.STOPPED, Vm.PAUSED, Vm.SUSPENDED, Vm.ERROR}),
            task=_HARD_REBOOT_TASKS,
            sets=Task.REBOOTING_HARD,
            action="reboot",
            policy="os_compute_api:servers:reboot",
        ),
    )
}
