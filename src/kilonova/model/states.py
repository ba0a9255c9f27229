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

_WITH_VOLUMES = frozenset(
    {Vm.ACTIVE, Vm.PAUSED, Vm.STOPPED, Vm.RESIZED, Vm.SOFT_DELETED, Vm.SHELVED, Vm.SHELVED_OFFLOADED}
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
        Guard(
            operation="evacuate",
            vm=frozenset({Vm.ACTIVE, Vm.STOPPED, Vm.ERROR}),
            task=None,
            lock=False,
            host=True,
            sets=Task.REBUILDING,
            action="evacuate",
            policy="os_compute_api:os-evacuate",
        ),
        Guard(
            operation="live_migrate",
            vm=frozenset({Vm.ACTIVE, Vm.PAUSED}),
            host=True,
            sets=Task.MIGRATING,
            action="live-migration",
            policy="os_compute_api:os-migrate-server:migrate_live",
        ),
        Guard(  # sets nothing: the task goes on
            operation="live_migration_force_complete",
            vm=frozenset({Vm.ACTIVE}),
            task=frozenset({Task.MIGRATING}),
            action="live_migration_force_complete",
            policy="os_compute_api:servers:migrations:force_complete",
        ),
        Guard(
            operation="live_migration_abort",
            vm=None,
            task=frozenset({Task.MIGRATING}),
            action="live_migration_cancel",
            policy="os_compute_api:servers:migrations:delete",
        ),
        Guard(
            operation="resize",
            vm=frozenset({Vm.ACTIVE, Vm.STOPPED}),
            host=True,
            sets=Task.RESIZE_PREP,
            action="resize",
            policy="os_compute_api:servers:resize",
        ),
        Guard(
            operation="migrate",
            vm=frozenset({Vm.ACTIVE, Vm.STOPPED}),
            host=True,
            sets=Task.RESIZE_PREP,
            action="migrate",
            policy="os_compute_api:os-migrate-server:migrate",
        ),
        Guard(  # sets nothing, as in Nova: only the migration tells that it is being confirmed
            operation="confirm_resize",
            vm=frozenset({Vm.RESIZED}),
            action="confirmResize",
            policy="os_compute_api:servers:confirm_resize",
        ),
        Guard(
            operation="revert_resize",
            vm=frozenset({Vm.RESIZED}),
            sets=Task.RESIZE_REVERTING,
            action="revertResize",
            policy="os_compute_api:servers:revert_resize",
        ),
        Guard(
            operation="snapshot",
            vm=frozenset({Vm.ACTIVE, Vm.STOPPED, Vm.PAUSED, Vm.SUSPENDED}),
            lock=False,
            host=True,
            sets=Task.IMAGE_SNAPSHOT_PENDING,
            action="createImage",
            policy="os_compute_api:servers:create_image",
        ),
        Guard(  # sets nothing, as in Nova; nor does a detach
            operation="attach_interface",
            vm=frozenset({Vm.ACTIVE, Vm.PAUSED, Vm.STOPPED}),
            host=True,
            action="attach_interface",
            policy="os_compute_api:os-attach-interfaces:create",
        ),
        Guard(
            operation="detach_interface",
            vm=frozenset({Vm.ACTIVE, Vm.PAUSED, Vm.STOPPED}),
            host=True,
            action="detach_interface",
            policy="os_compute_api:os-attach-interfaces:delete",
        ),
        Guard(
            operation="attach_volume",
            vm=_WITH_VOLUMES,
            action="attach_volume",
            policy="os_compute_api:os-volumes-attachments:create",
        ),
        Guard(
            operation="detach_volume",
            vm=_WITH_VOLUMES,
            action="detach_volume",
            policy="os_compute_api:os-volumes-attachments:delete",
        ),
        Guard(
            operation="shelve",
            vm=frozenset({Vm.ACTIVE, Vm.STOPPED, Vm.PAUSED, Vm.SUSPENDED}),
            host=True,
            sets=Task.SHELVING,
            action="shelve",
            policy="os_compute_api:os-shelve:shelve",
        ),
        Guard(
            operation="shelve_offload",
            vm=frozenset({Vm.SHELVED}),
            host=True,
            sets=Task.SHELVING_OFFLOADING,
            action="shelveOffload",
            policy="os_compute_api:os-shelve:shelve_offload",
        ),
        Guard(
            operation="unshelve",
            vm=frozenset({Vm.SHELVED, Vm.SHELVED_OFFLOADED}),
            sets=Task.UNSHELVING,
            action="unshelve",
            policy="os_compute_api:os-shelve:unshelve",
        ),
    )
}
