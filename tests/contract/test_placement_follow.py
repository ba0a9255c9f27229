"""What is held of a host follows inventories that have moved within its tree, or nothing happens."""

from __future__ import annotations

import pytest

from kilonova.errors import Conflict
from kilonova.model.host import HostReport, Inventory, ProviderReport
from kilonova.resources.reshape import Following, Reshape
from kilonova.services.placement.port import Placement
from tests.contract.rigs import Rig, new

CPUS = Inventory(total=8, allocation_ratio=2.0)
GPUS = Inventory(total=4)


@pytest.fixture
def placement(rig: Rig) -> Placement:
    assert rig.placement is not None
    return rig.placement


def report(root: str, stock: dict[str, Inventory], *below: ProviderReport) -> HostReport:
    return HostReport(
        host="h1",
        compute_id=root,
        hypervisor_hostname=f"host-{root}",
        hypervisor_type="fake",
        hypervisor_version=1,
        host_ip="",
        inventories=stock,
        traits=("COMPUTE_NODE",),
        providers=below,
    )


def gpu(root: str, number: int, total: int = 4) -> ProviderReport:
    name = f"{root}-gpu{number}"
    return ProviderReport(uuid=new(), name=name, parent=root, inventories={"VGPU": Inventory(total=total)})


async def followed(placement: Placement, after: HostReport) -> Reshape | None:
    return await placement.follow(Following(after, {}))


@pytest.mark.capability("RT-27")
async def test_what_is_held_moves_with_its_class(placement: Placement) -> None:
    root, one, two = new(), new(), new()
    await placement.report_tree(report(root, {"VCPU": CPUS, "VGPU": GPUS}).tree)
    assert await placement.claim(one, {root: {"VCPU": 3, "VGPU": 2}}, "p", "u")
    assert await placement.claim(two, {root: {"VCPU": 1}}, "p", "u")
    child = gpu(root, 0)
    after = report(root, {"VCPU": CPUS}, child)
    assert await followed(placement, after) is not None
    assert await placement.held(one) == {root: {"VCPU": 3}, child.uuid: {"VGPU": 2}}
    assert await placement.held(two) == {root: {"VCPU": 1}}
    assert await placement.report_tree(after.tree) == []
    found = {each.uuid: each for each in await placement.providers() if each.uuid in (root, child.uuid)}
    assert found[root].inventories == {"VCPU": CPUS} and found[root].used == {"VCPU": 4}
    assert found[child.uuid].used == {"VGPU": 2} and found[child.uuid].parent == root
    assert await followed(placement, after) is None
    assert await placement.claim(new(), {child.uuid: {"VGPU": 2}}, "p", "u")
    assert not await placement.claim(new(), {child.uuid: {"VGPU": 1}}, "p", "u")


@pytest.mark.capability("RT-27")
async def test_without_room_all_stays_as_it_was(placement: Placement) -> None:
    root, one = new(), new()
    await placement.report_tree(report(root, {"VGPU": GPUS}).tree)
    assert await placement.claim(one, {root: {"VGPU": 3}}, "p", "u")
    child = gpu(root, 0, total=2)
    after = report(root, {"VCPU": CPUS}, child)
    with pytest.raises(Conflict, match="no room for 1"):
        await followed(placement, after)
    assert await placement.held(one) == {root: {"VGPU": 3}}
    assert child.uuid not in {each.uuid for each in await placement.providers()}
    with pytest.raises(Conflict):  # at other times than the start it is an error, too
        await placement.report_tree(after.tree)


async def test_a_tree_that_is_new_has_nothing_to_follow(placement: Placement) -> None:
    root = new()
    assert await followed(placement, report(root, {"VCPU": CPUS}, gpu(root, 0))) is None
    assert root not in {each.uuid for each in await placement.providers()}


async def test_several_new_providers(placement: Placement) -> None:
    root, one, two = new(), new(), new()
    await placement.report_tree(report(root, {"VCPU": CPUS, "VGPU": GPUS}).tree)
    assert await placement.claim(one, {root: {"VGPU": 2}}, "p", "u")
    assert await placement.claim(two, {root: {"VGPU": 2}}, "p", "u")
    first, second = gpu(root, 0, total=2), gpu(root, 1, total=2)
    assert await followed(placement, report(root, {"VCPU": CPUS}, first, second)) is not None
    held = [await placement.held(each) for each in (one, two)]
    assert sorted(map(str, held)) == sorted(str({each.uuid: {"VGPU": 2}}) for each in (first, second))


async def test_nothing_follows_to_another_host(placement: Placement) -> None:
    """An agent that lies cannot put what its servers hold onto others' providers."""
    mine, others, one = new(), new(), new()
    theirs = gpu(others, 0)
    await placement.report_tree(report(others, {"VCPU": CPUS}, theirs).tree)
    await placement.report_tree(report(mine, {"VCPU": CPUS, "VGPU": GPUS}).tree)
    assert await placement.claim(one, {mine: {"VGPU": 2}}, "p", "u")
    for lie in (theirs, ProviderReport(uuid=theirs.uuid, name="x", parent=mine, inventories={"VGPU": GPUS})):
        with pytest.raises(Conflict, match="in the tree of another host"):
            await followed(placement, report(mine, {"VCPU": CPUS}, lie))
    assert await placement.held(one) == {mine: {"VGPU": 2}}
