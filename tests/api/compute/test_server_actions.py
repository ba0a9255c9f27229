"""Actions on servers: in which states each is taken, what it sets, and what it says when it is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from kilonova.db import instances
from kilonova.journal import actions as journal
from kilonova.model.instance import Instance
from kilonova.model.states import GUARDS, TASK_STATES, VM_STATES
from kilonova.operations.cloud import Cloud
from tests.api.compute.asgi import Api, Reply
from tests.api.compute.conftest import PROJECT
from tests.api.compute.parts import server

HARD_TASKS = {
    None,
    "rebooting",
    "reboot_pending",
    "reboot_started",
    "rebooting_hard",
    "resuming",
    "unpausing",
    "pausing",
    "suspending",
}
ANY_TASK = {None, *TASK_STATES}
LIVING = [state for state in VM_STATES if state != "deleted"]

# action -> vm_states and task_states in which Nova takes it, the task_state that it sets, the action recorded
RULES: dict[str, tuple[Any, set[str], set[Any], str, str]] = {
    "os-start": (None, {"stopped"}, {None}, "powering-on", "start"),
    "os-stop": (None, {"active", "error"}, {None}, "powering-off", "stop"),
    "reboot": ({"type": "SOFT"}, {"active"}, {None}, "rebooting", "reboot"),
    "reboot ": (
        {"type": "HARD"},
        {"active", "stopped", "paused", "suspended", "error"},
        HARD_TASKS,
        "rebooting_hard",
        "reboot",
    ),
    "forceDelete": (None, set(LIVING), ANY_TASK, "deleting", "delete"),
}


async def act(api: Api, uuid: str, action: str, argument: Any = None, **how: Any) -> Reply:
    return await api("POST", f"/servers/{uuid}/action", {action.strip(): argument}, **how)


async def put(cloud: Cloud, uuid: str, **values: Any) -> None:
    assert await cloud.db.write(lambda tx: instances.update(tx, uuid, expect_task=instances.ANY, **values))


async def get(cloud: Cloud, uuid: str) -> Instance:
    found = await cloud.db.read(lambda tx: instances.show(tx, uuid))
    assert found is not None
    return found


async def recorded(cloud: Cloud, uuid: str) -> list[str]:
    """The actions of a server, the newest first."""
    return [each.action for each in await cloud.db.read(lambda tx: journal.list_actions(tx, uuid))]


OPERATIONS = {"start", "stop", "reboot", "reboot_hard", "force_delete"}
# which are no actions, or have a file of tests of their own
ELSEWHERE = {"create", "delete", "evacuate", "shelve", "shelve_offload", "snapshot", "unshelve"}
ELSEWHERE |= {"resize", "migrate", "confirm_resize", "revert_resize", "attach_interface", "detach_interface"}
ELSEWHERE |= {"attach_volume", "detach_volume"}
ELSEWHERE |= {"live_migrate", "live_migration_abort", "live_migration_force_complete"}


def test_no_operation_is_forgotten() -> None:
    new = set(GUARDS) - OPERATIONS - ELSEWHERE
    assert not new, f"write down in RULES in which states Nova takes {new}"


@pytest.mark.capability("API-1", "API-8", "API-13", "API-15", "API-17", "API-19", "API-20", "TS-4", "VS-2")
@pytest.mark.parametrize("action", RULES)
async def test_every_action_in_every_state(api: Api, cloud: Cloud, action: str) -> None:
    """A refused one names what stands in its way and leaves neither a trace nor an action behind."""
    argument, vms, tasks, sets, name = RULES[action]
    uuid = (await server(cloud, PROJECT)).uuid
    for vm, task in itertools.product(LIVING, [None, *TASK_STATES]):
        await put(cloud, uuid, vm_state=vm, task_state=task)
        before = len(await recorded(cloud, uuid))
        reply = await act(api, uuid, action, argument)
        now, log = await get(cloud, uuid), await recorded(cloud, uuid)
        if vm in vms and task in tasks:
            assert (reply.status, reply.content) == (202, b""), (vm, task, reply.content)
            assert (now.vm_state, now.task_state, now.progress) == (vm, sets, 0)
            if action != "forceDelete" or task != "deleting":
                assert (len(log), log[0]) == (before + 1, name)
            continue
        where = f"vm_state {vm}" if vm not in vms else f"task_state {task}"
        assert reply.status == 409, (vm, task)
        assert reply.fault == f"Cannot '{name}' instance {uuid} while it is in {where}"
        assert list(reply.json) == ["conflictingRequest"]
        assert (now.vm_state, now.task_state, len(log)) == (vm, task, before)


@pytest.mark.capability("API-1", "API-4")
async def test_the_order_of_the_guards(api: Api, cloud: Cloud) -> None:
    """Lock, host, vm_state, task_state, launched_at: the first that fails is named."""
    uuid = (
        await server(
            cloud,
            PROJECT,
            vm_state="paused",
            task_state="pausing",
            launched_at=None,
            host=None,
            locked="owner",
        )
    ).uuid
    steps: list[tuple[dict[str, Any], str | None]] = [
        ({}, f"Instance {uuid} is locked"),
        ({"locked": None}, f"Instance {uuid} is not ready"),
        ({"host": "host1"}, f"Cannot 'stop' instance {uuid} while it is in vm_state paused"),
        ({"vm_state": "active"}, f"Cannot 'stop' instance {uuid} while it is in task_state pausing"),
        ({"task_state": None}, f"Cannot 'stop' instance {uuid} while it is in launched_at None"),
        ({"launched_at": 1}, None),
    ]
    for changes, reason in steps:
        if changes:
            await put(cloud, uuid, **changes)
        reply = await act(api, uuid, "os-stop")
        assert reply.status == (409 if reason else 202)
        if reason:
            assert reply.fault == reason
    assert await recorded(cloud, uuid) == ["stop"]


@pytest.mark.parametrize("action", ["os-start", "os-stop"])
async def test_a_server_without_a_host_is_not_ready(api: Api, cloud: Cloud, action: str) -> None:
    uuid = (await server(cloud, PROJECT, vm_state="error", host=None)).uuid
    reply = await act(api, uuid, action)
    assert (reply.status, reply.fault) == (409, f"Instance {uuid} is not ready")


@pytest.mark.parametrize("action", list(RULES))
@pytest.mark.parametrize("who", ["reader", "nobody", "other"])
async def test_who_may_act(api: Api, cloud: Cloud, action: str, who: str) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    reply = await act(api, uuid, action, RULES[action][0], who=who)
    assert reply.status == (404 if who == "other" else 403)
    assert await recorded(cloud, uuid) == []


# ---- lock ----

GUARDED = [
    ("POST", "/action", {"os-start": None}, "stopped"),
    ("POST", "/action", {"os-stop": None}, "active"),
    ("POST", "/action", {"reboot": {"type": "SOFT"}}, "active"),
    ("POST", "/action", {"reboot": {"type": "HARD"}}, "active"),
    ("POST", "/action", {"forceDelete": None}, "active"),
    ("DELETE", "", None, "active"),
    ("POST", "/metadata", {"metadata": {"a": "b"}}, "active"),
    ("PUT", "/metadata", {"metadata": {"a": "b"}}, "active"),
    ("PUT", "/metadata/a", {"meta": {"a": "b"}}, "active"),
    ("DELETE", "/metadata/k", None, "active"),
]
FREE = [
    ("GET", "", None),
    ("PUT", "", {"server": {"name": "x"}}),
    ("PUT", "/tags", {"tags": ["x"]}),
    ("POST", "/action", {"os-getConsoleOutput": {}}),
    ("POST", "/action", {"lock": None}),
    ("POST", "/action", {"unlock": None}),
]


@pytest.mark.capability("API-4")
@pytest.mark.parametrize(
    ("method", "path", "body", "vm"), GUARDED, ids=[f"{m} {p} {b}" for m, p, b, _ in GUARDED]
)
async def test_what_a_lock_keeps_off(
    api: Api, cloud: Cloud, method: str, path: str, body: Any, vm: str
) -> None:
    """Everybody but administrators, the owner too."""
    uuid = (await server(cloud, PROJECT, vm_state=vm, locked="owner", metadata={"k": "v"})).uuid
    before = await get(cloud, uuid)
    for who in ("member", "manager"):
        reply = await api(method, f"/servers/{uuid}{path}", body, who=who)
        assert (reply.status, reply.fault) == (409, f"Instance {uuid} is locked")
    assert await get(cloud, uuid) == before
    assert (await api(method, f"/servers/{uuid}{path}", body, who="admin")).status < 300


@pytest.mark.capability("API-4")
@pytest.mark.parametrize(("method", "path", "body"), FREE, ids=[f"{m} {p} {b}" for m, p, b in FREE])
async def test_what_a_lock_lets_pass(api: Api, cloud: Cloud, method: str, path: str, body: Any) -> None:
    uuid = (await server(cloud, PROJECT, locked="owner")).uuid
    reply = await api(method, f"/servers/{uuid}{path}", body, v=72)
    assert reply.status < 300, reply.content


@pytest.mark.capability("API-39", "API-40", "IA-7")
async def test_locks_and_who_may_open_them(api: Api, cloud: Cloud) -> None:
    uuid = (await server(cloud, PROJECT)).uuid

    async def shown() -> tuple[bool, str | None]:
        found = (await api("GET", f"/servers/{uuid}", v=73)).json["server"]
        return found["locked"], found["locked_reason"]

    assert await shown() == (False, None)
    assert (await act(api, uuid, "lock", {"locked_reason": "mine"}, v=73)).status == 202
    assert await shown() == (True, "mine")
    # a lock of his own project's: nothing changes, nothing is recorded
    assert (await act(api, uuid, "lock", {"locked_reason": "again"}, v=73)).status == 202
    assert await shown() == (True, "mine")
    assert await recorded(cloud, uuid) == ["lock"]
    assert (await act(api, uuid, "unlock", v=73)).status == 202
    assert await shown() == (False, None)
    # an administrator's lock is not the owner's to open
    assert (await act(api, uuid, "lock", who="admin")).status == 202
    assert (await get(cloud, uuid)).locked == "admin"
    reply = await act(api, uuid, "unlock")
    assert (reply.status, "unlock_override" in reply.fault) == (403, True)
    assert (await act(api, uuid, "lock", {"locked_reason": "x"}, v=73)).status == 202
    assert (await get(cloud, uuid)).locked == "admin"
    assert (await act(api, uuid, "unlock", who="admin")).status == 202
    assert await shown() == (False, None)
    # an administrator takes over the owner's, and may open it
    await act(api, uuid, "lock")
    assert (await act(api, uuid, "lock", {"locked_reason": "audit"}, v=73, who="admin")).status == 202
    assert (await get(cloud, uuid)).locked == "admin"
    assert await shown() == (True, "audit")
    await act(api, uuid, "unlock", who="admin")
    await act(api, uuid, "lock")
    assert (await act(api, uuid, "unlock", who="admin")).status == 202
    expected = ["lock", "unlock", "lock", "unlock", "lock", "lock", "unlock", "lock", "unlock"]
    assert (await recorded(cloud, uuid))[::-1] == expected
    listed = await api("GET", f"/servers/{uuid}/os-instance-actions", v=58)
    for each in listed.json["instanceActions"]:
        found = await api("GET", f"/servers/{uuid}/os-instance-actions/{each['request_id']}", v=51)
        (event,) = found.json["instanceAction"]["events"]
        assert (event["event"], event["result"]) == (f"api_{each['action']}", "Success")
        assert event["finish_time"] is not None


@pytest.mark.parametrize(
    ("version", "action", "argument", "status"),
    [
        (1, "lock", None, 202),
        (1, "lock", {}, 202),
        (1, "lock", "anything", 202),
        (72, "lock", {"locked_reason": "x"}, 202),
        (73, "lock", None, 202),
        (73, "lock", {}, 202),
        (73, "lock", {"locked_reason": "x" * 255}, 202),
        (73, "lock", {"locked_reason": "x" * 256}, 400),
        (73, "lock", {"locked_reason": ""}, 400),
        (73, "lock", {"locked_reason": None}, 400),
        (73, "lock", {"locked_reason": 1}, 400),
        (73, "lock", {"reason": "x"}, 400),
        (73, "lock", "anything", 400),
        (72, "unlock", "anything", 202),
        (73, "unlock", None, 202),
        (73, "unlock", {}, 400),
    ],
)
async def test_bodies_of_locks(
    api: Api, cloud: Cloud, version: int, action: str, argument: Any, status: int
) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    reply = await act(api, uuid, action, argument, v=version)
    assert reply.status == status, reply.content
    reason = (await get(cloud, uuid)).locked_reason
    assert reason == ("x" * 255 if version == 73 and argument == {"locked_reason": "x" * 255} else None)


# ---- reset of the state ----


@pytest.mark.capability("API-60", "IA-7")
async def test_reset_state(api: Api, cloud: Cloud) -> None:
    for vm, task, wanted in itertools.product(LIVING, (None, "deleting", "spawning"), ("active", "error")):
        uuid = (
            await server(cloud, PROJECT, vm_state=vm, task_state=task, locked="owner", power_state=4)
        ).uuid
        reply = await act(api, uuid, "os-resetState", {"state": wanted}, who="admin")
        assert (reply.status, reply.content) == (202, b"")
        now = await get(cloud, uuid)
        assert (now.vm_state, now.task_state, now.power_state, now.locked) == (wanted, None, 4, "owner")
        (action,) = await cloud.db.read(lambda tx, uuid=uuid: journal.list_actions(tx, uuid))
        assert (action.action, action.message) == ("resetState", None)
        assert action.finish_time == action.start_time


@pytest.mark.parametrize("who", ["member", "manager", "reader"])
async def test_reset_state_is_for_administrators(api: Api, cloud: Cloud, who: str) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    reply = await act(api, uuid, "os-resetState", {"state": "error"}, who=who)
    assert (reply.status, "reset_state" in reply.fault) == (403, True)
    assert (await get(cloud, uuid)).vm_state == "active"


@pytest.mark.parametrize(
    "argument", [None, {}, {"state": "stopped"}, {"state": None}, {"state": "error", "x": 1}, "error"]
)
async def test_reset_state_to_other_states(api: Api, cloud: Cloud, argument: Any) -> None:
    uuid = (await server(cloud, PROJECT, vm_state="paused")).uuid
    reply = await act(api, uuid, "os-resetState", argument, who="admin")
    assert (reply.status, "os-resetState" in reply.fault) == (400, True)
    assert (await get(cloud, uuid)).vm_state == "paused"


# ---- bodies ----


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "Malformed request body"),
        ({"os-start": None, "os-stop": None}, "Malformed request body"),
        ({"fly": None}, "There is no such action: fly"),
        ({"": None}, "There is no such action: "),
        ({"os-stop ": None}, "There is no such action: os-stop "),
        ({"reboot": None}, "reboot"),
        ({"reboot": {}}, "type"),
        ({"reboot": {"type": "sOFT"}}, "type"),
        ({"reboot": {"type": "SOFT", "x": 1}}, "x"),
        ({"reboot": "SOFT"}, "reboot"),
        ({"reboot": []}, "reboot"),
    ],
)
async def test_bodies_that_are_no_action(api: Api, cloud: Cloud, body: Any, reason: str) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    reply = await api("POST", f"/servers/{uuid}/action", body, v=104)
    assert reply.status == 400
    assert reason in reply.fault
    assert await recorded(cloud, uuid) == []


@pytest.mark.parametrize("argument", [None, {}, {"anything": 1}, "text", 0])
async def test_start_and_stop_take_any_argument(api: Api, cloud: Cloud, argument: Any) -> None:
    """As Nova does: clients have sent null and {} for ever."""
    for action, vm in (("os-stop", "active"), ("os-start", "stopped")):
        uuid = (await server(cloud, PROJECT, vm_state=vm)).uuid
        assert (await act(api, uuid, action, argument, v=104)).status == 202


# ---- console ----


@pytest.mark.capability("API-55")
@pytest.mark.parametrize(
    ("argument", "output"),
    [
        ({}, "one\ntwo\nthree"),
        ({"length": None}, "one\ntwo\nthree"),
        ({"length": -1}, "one\ntwo\nthree"),
        ({"length": "-1"}, "one\ntwo\nthree"),
        ({"length": 0}, ""),
        ({"length": 1}, "three"),
        ({"length": "2"}, "two\nthree"),
        ({"length": 2**31 - 1}, "one\ntwo\nthree"),
    ],
)
async def test_the_console(api: Api, cloud: Cloud, argument: Any, output: str) -> None:
    """Without the characters that XML had no words for."""
    uuid = (await server(cloud, PROJECT, locked="admin", task_state="migrating")).uuid
    reply = await act(api, uuid, "os-getConsoleOutput", argument)
    assert (reply.status, reply.json) == (200, {"output": output})


@pytest.mark.parametrize(
    "argument",
    [
        None,
        [],
        {"length": -2},
        {"length": "x"},
        {"length": 1.5},
        {"length": True},
        {"lines": 1},
        {"length": {}},
    ],
)
async def test_consoles_that_are_refused(api: Api, cloud: Cloud, argument: Any) -> None:
    uuid = (await server(cloud, PROJECT)).uuid
    reply = await act(api, uuid, "os-getConsoleOutput", argument)
    assert (reply.status, "os-getConsoleOutput" in reply.fault) == (400, True)


async def test_the_console_of_a_server_without_a_host(api: Api, cloud: Cloud) -> None:
    uuid = (await server(cloud, PROJECT, host=None)).uuid
    reply = await act(api, uuid, "os-getConsoleOutput", {})
    assert (reply.status, reply.fault) == (409, f"Instance {uuid} is not ready")
    reply = await act(api, uuid, "os-getConsoleOutput", {}, who="reader")
    assert reply.status == 403
