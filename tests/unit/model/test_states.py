"""The table of states against what Nova's is known to be, written down here a second time."""

from __future__ import annotations

from pathlib import Path

import pytest

import kilonova
from kilonova.model.states import (
    GUARDS,
    POWER_NAMES,
    STATUS,
    TASK_STATES,
    VM_STATES,
    Power,
    Task,
    states_of,
    status,
)

VM = [
    "active",
    "building",
    "deleted",
    "error",
    "paused",
    "rescued",
    "resized",
    "shelved",
    "shelved_offloaded",
    "soft-delete",
    "stopped",
    "suspended",
]
TASKS = [
    "scheduling",
    "networking",
    "block_device_mapping",
    "spawning",
    "image_snapshot_pending",
    "image_snapshot",
    "image_pending_upload",
    "image_uploading",
    "image_backup",
    "updating_password",
    "resize_prep",
    "resize_migrating",
    "resize_migrated",
    "resize_finish",
    "resize_reverting",
    "resize_confirming",
    "rebooting",
    "reboot_pending",
    "reboot_started",
    "rebooting_hard",
    "reboot_pending_hard",
    "reboot_started_hard",
    "pausing",
    "unpausing",
    "suspending",
    "resuming",
    "powering-off",
    "powering-on",
    "rescuing",
    "unrescuing",
    "rebuilding",
    "rebuild_block_device_mapping",
    "rebuild_spawning",
    "migrating",
    "deleting",
    "soft-deleting",
    "restoring",
    "shelving",
    "shelving_image_pending_upload",
    "shelving_image_uploading",
    "shelving_offloading",
    "unshelving",
]
REBUILD = ["rebuilding", "rebuild_block_device_mapping", "rebuild_spawning"]
RESIZE = ["resize_prep", "resize_migrating", "resize_migrated", "resize_finish"]
SOFT = ["rebooting", "reboot_pending", "reboot_started"]
HARD = ["rebooting_hard", "reboot_pending_hard", "reboot_started_hard"]

# vm_state -> its status, and those that a task_state makes of it
SHOWN: dict[str, tuple[str, dict[str, list[str]]]] = {
    "building": ("BUILD", {}),
    "active": (
        "ACTIVE",
        {
            "REBOOT": SOFT,
            "HARD_REBOOT": HARD,
            "PASSWORD": ["updating_password"],
            "REBUILD": REBUILD,
            "MIGRATING": ["migrating"],
            "RESIZE": RESIZE,
        },
    ),
    "stopped": ("SHUTOFF", {"RESIZE": RESIZE, "REBUILD": REBUILD}),
    "resized": ("VERIFY_RESIZE", {"REVERT_RESIZE": ["resize_reverting"]}),
    "paused": ("PAUSED", {"MIGRATING": ["migrating"]}),
    "suspended": ("SUSPENDED", {}),
    "rescued": ("RESCUE", {}),
    "error": ("ERROR", {"REBUILD": REBUILD}),
    "deleted": ("DELETED", {}),
    "soft-delete": ("SOFT_DELETED", {}),
    "shelved": ("SHELVED", {}),
    "shelved_offloaded": ("SHELVED_OFFLOADED", {}),
}


@pytest.mark.capability("VS-1")
def test_twelve_vm_states() -> None:
    assert sorted(VM_STATES) == sorted(VM)
    assert [state for state in VM_STATES if "-" in state] == ["soft-delete"]


@pytest.mark.capability("TS-1", "TS-2")
def test_forty_two_task_states() -> None:
    assert sorted(TASK_STATES) == sorted(TASKS)
    assert len(set(TASK_STATES)) == 42
    dashed = {task for task in TASK_STATES if "-" in task}
    assert dashed == {"powering-off", "powering-on", "soft-deleting"}


@pytest.mark.capability("TS-3")
def test_resize_confirming_is_never_set() -> None:
    """It is there because users' filters may name it; nothing else in the house does."""
    users = [
        path.name
        for path in Path(kilonova.__file__).parent.rglob("*.py")
        if "resize_confirming" in path.read_text().lower()
    ]
    assert users == ["states.py"]
    assert all(guard.sets != Task.RESIZE_CONFIRMING for guard in GUARDS.values())


@pytest.mark.capability("TS-5")
@pytest.mark.parametrize("vm", VM)
def test_every_status(vm: str) -> None:
    default, busy = SHOWN[vm]
    by_task = {task: word for word, tasks in busy.items() for task in tasks}
    assert status(vm, None) == default
    for task in TASKS:
        assert status(vm, task) == by_task.get(task, default)
        for word in {default, *busy}:
            found = dict(states_of(word))
            if vm in found and word != default:
                assert found[vm] is not None and set(found[vm]) == set(busy[word])
            if word == default:
                assert found[vm] is None


def test_a_state_that_nobody_knows() -> None:
    assert status("asleep", None) == "UNKNOWN"
    assert states_of("asleep") == states_of("") == []
    assert states_of("active") == states_of("Active") == states_of("ACTIVE") == [("active", None)]
    assert set(SHOWN) == set(STATUS)


@pytest.mark.capability("PS-1", "PS-2")
def test_power_states() -> None:
    expected = {0: "pending", 1: "running", 3: "paused", 4: "shutdown", 6: "crashed", 7: "suspended"}
    assert expected == POWER_NAMES
    numbers = {value for name, value in vars(Power).items() if name.isupper()}
    assert numbers == set(expected)
    assert len(set(expected.values())) == 6
