"""Resizes of servers in another cell than the first: their quota is in another database, and counted once."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.db import instances
from kilonova.errors import Failed, HostFault, OverQuota
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations import confirm_resize, delete, resize, revert_resize
from kilonova.testing.embedded import audits, member
from tests.operations.second_cell import Two, two

__all__ = ["two"]

SMALL = {"instances": 1, "cores": 1, "ram": 128}
LARGE = {"instances": 1, "cores": 1, "ram": 512}


async def far(two: Two) -> Instance:
    """A server in the second cell, whose only host may be chosen again."""
    two.whole.settings.options["DEFAULT"]["allow_resize_to_same_host"] = True
    return await two.made()


async def resized(two: Two, server: Instance, flavor: str = "1") -> Instance:
    now = await two.second.db.read(lambda tx: instances.show(tx, server.uuid))
    assert now is not None
    await resize.resize(two.second, member(two.whole), now, flavor)
    return await two.settled(two.second, server.uuid)


async def decided(two: Two, server: Instance, operation: Any) -> Instance:
    await operation.submit(two.second, member(two.whole), server.uuid)
    return await two.settled(two.second, server.uuid)


async def assert_counted(two: Two, uuid: str, used: dict[str, int], flavor: str) -> None:
    assert await two.used() == used
    mapping = await two.mapping(uuid)
    assert mapping is not None and mapping.flavor.name == flavor
    assert await audits(two.whole) == []


@pytest.mark.capability("API-103", "MG-RSZ-7")
@pytest.mark.parametrize("operation", [confirm_resize, revert_resize])
async def test_quota_and_mapping_follow_the_flavor(two: Two, operation: Any) -> None:
    server = await far(two)
    await assert_counted(two, server.uuid, SMALL, "m1.nano")
    found = await resized(two, server)
    assert (found.vm_state, found.flavor.name) == (Vm.RESIZED, "m1.tiny"), found.fault
    await assert_counted(two, server.uuid, LARGE, "m1.tiny")
    found = await decided(two, server, operation)
    assert found.vm_state == Vm.ACTIVE
    if operation is confirm_resize:
        await assert_counted(two, server.uuid, LARGE, "m1.tiny")
    else:
        await assert_counted(two, server.uuid, SMALL, "m1.nano")


async def test_what_shrinks_is_given_back_and_taken_again_by_a_revert(two: Two) -> None:
    server = await far(two)
    await resized(two, server)
    await decided(two, server, confirm_resize)
    found = await resized(two, server, "42")
    assert found.vm_state == Vm.RESIZED, found.fault
    await assert_counted(two, server.uuid, SMALL, "m1.nano")
    two.whole.settings.options["quota"]["ram"] = 128
    await decided(two, server, revert_resize)
    await assert_counted(two, server.uuid, LARGE, "m1.tiny")


@pytest.mark.parametrize("verb", ["park", "fit_disks", "start", "resume"])
async def test_a_resize_that_fails_gives_back_what_it_has_booked(two: Two, verb: str) -> None:
    server = await far(two)
    two.driver.faults.add(verb, Failed("no") if verb != "park" else HostFault("no"))
    found = await resized(two, server)
    assert (found.vm_state, found.flavor.name) == (Vm.ACTIVE, "m1.nano") and found.fault is not None
    await assert_counted(two, server.uuid, SMALL, "m1.nano")


async def test_what_is_over_quota_is_refused_at_once_or_undone(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await far(two)
    two.whole.settings.options["quota"]["ram"] = 511
    with pytest.raises(OverQuota, match="Quota exceeded for ram"):
        await resized(two, server)
    monkeypatch.setattr("kilonova.operations.resize_quota.check", lambda *_: None)  # others were faster
    found = await resized(two, server)
    assert (found.vm_state, found.task_state) == (Vm.ACTIVE, None)
    assert found.fault is not None and "Quota exceeded for ram" in found.fault.message
    await assert_counted(two, server.uuid, SMALL, "m1.nano")


async def test_a_deleted_server_gives_back_what_it_had_last(two: Two) -> None:
    server = await far(two)
    await resized(two, server)
    await delete.submit(two.second, member(two.whole), server.uuid)
    found = await two.settled(two.second, server.uuid)
    assert found.deleted_at is not None
    assert await two.used() == {"instances": 0, "cores": 0, "ram": 0}
    assert await audits(two.whole) == []
    assert two.driver.guest_file.everything() == {}
