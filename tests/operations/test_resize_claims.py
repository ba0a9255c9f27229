"""Resizes of servers with cells, CPUs and devices of their own: what both sides claim and are told."""

from __future__ import annotations

import pytest

from kilonova.errors import Failed
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.operations import confirm_resize, resize, revert_resize
from kilonova.testing.embedded import fake_driver, member, settled
from tests.operations.test_claims import PINNED, Pinning, pinning

__all__ = ["pinning"]


async def larger(pinning: Pinning) -> Instance:
    """A server of two CPUs that waits for a decision on three, on the same host."""
    pinning.cloud.settings.options["DEFAULT"]["allow_resize_to_same_host"] = True
    await pinning.flavor("three", PINNED, vcpus=3)
    server = await pinning.boot("pinned")
    assert server.vm_state == Vm.ACTIVE, server.fault
    await resize.resize(pinning.cloud.cloud, member(pinning.cloud), server, "three")
    return await settled(pinning.cloud, server.uuid, 60)


@pytest.mark.capability("CL-9", "MG-RSZ-3")
async def test_both_sides_are_claimed_until_it_is_decided(pinning: Pinning) -> None:
    found = await larger(pinning)
    assert (found.vm_state, found.fault) == (Vm.RESIZED, None)
    before, after = pinning.told
    assert before.numa is not None and after.numa is not None
    assert len(before.numa.cells[0].pinning) == 2 and len(after.numa.cells[0].pinning) == 3
    assert {before.pci[0].address, after.pci[0].address} == {"0000:00:00.0", "0000:01:00.0"}
    now = await pinning.resources()
    assert len(now.guests) == 2 and all(each.holder for each in now.devices)
    await confirm_resize.submit(pinning.cloud.cloud, member(pinning.cloud), found.uuid)
    found = await settled(pinning.cloud, found.uuid)
    claim = await pinning.cloud.cloud.claims.of(found)
    assert claim is not None and claim.numa == after.numa and claim.devices == after.pci
    assert len((await pinning.resources()).guests) == 1
    await pinning.delete(found)
    assert await pinning.free()


@pytest.mark.capability("MG-RSZ-12")
async def test_a_revert_has_the_cpus_and_devices_that_it_had(pinning: Pinning) -> None:
    found = await larger(pinning)
    await revert_resize.submit(pinning.cloud.cloud, member(pinning.cloud), found.uuid)
    found = await settled(pinning.cloud, found.uuid)
    assert (found.vm_state, found.fault, found.flavor.name) == (Vm.ACTIVE, None, "pinned")
    first, _, last = pinning.told
    assert (last.numa, last.pci) == (first.numa, first.pci)
    claim = await pinning.cloud.cloud.claims.of(found)
    assert claim is not None and (claim.numa, claim.devices) == (first.numa, first.pci)
    await pinning.delete(found)
    assert await pinning.free()


@pytest.mark.capability("CL-12")
async def test_a_resize_that_fails_gives_the_new_side_back_and_the_old_side_starts(pinning: Pinning) -> None:
    fake_driver(pinning.cloud).faults.add("fit_disks", Failed("no"))
    found = await larger(pinning)
    assert (found.vm_state, found.flavor.name) == (Vm.ACTIVE, "pinned") and found.fault is not None
    first, again = pinning.told
    assert (again.numa, again.pci) == (first.numa, first.pci)
    assert len((await pinning.resources()).guests) == 1
    await pinning.delete(found)
    assert await pinning.free()


async def test_a_resize_that_does_not_fit_says_what_is_missing(pinning: Pinning) -> None:
    first, second = await pinning.boot("pinned"), await pinning.boot("pinned")
    pinning.cloud.settings.options["DEFAULT"]["allow_resize_to_same_host"] = True
    await pinning.flavor("three", PINNED, vcpus=3)
    await resize.resize(pinning.cloud.cloud, member(pinning.cloud), first, "three")
    found = await settled(pinning.cloud, first.uuid, 60)
    assert (found.vm_state, found.flavor.name) == (Vm.ACTIVE, "pinned")
    assert found.fault is not None and "PCI" in found.fault.message + found.fault.details
    for each in (found, second):
        await pinning.delete(each)
    assert await pinning.free()
