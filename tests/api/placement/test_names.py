"""Traits and resource classes: the standard ones, and one's own."""

from __future__ import annotations

import uuid

import pytest

from kilonova.services.placement import standard
from tests.api.placement.face import Face, is_fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

LONG = "CUSTOM_" + "X" * 249  # one character too many


def custom() -> str:
    return f"CUSTOM_{uuid.uuid4().hex.upper()}"


async def test_a_trait_from_create_to_delete(face: Face) -> None:
    name = custom()
    path = f"/traits/{name}"
    is_fault(await face.call("GET", path), 404)
    is_fault(await face.call("DELETE", path), 404)
    for status in (201, 204):
        reply = await face.call("PUT", path)
        assert reply.expect(status).headers["location"].endswith(path) and reply.content == b""
        assert "content-type" not in reply.headers
    (await face.call("GET", path)).expect(204)
    assert name in (await face.get("/traits"))["traits"]
    (await face.call("DELETE", path)).expect(204)
    is_fault(await face.call("DELETE", path), 404)
    for method in ("GET", "PUT", "DELETE"):
        is_fault(await face.call(method, path, v=5), 404)
    is_fault(await face.call("GET", "/traits", v=5), 404)


@pytest.mark.parametrize(
    "name", ["TRAIT_X", "CUSTOM_", "CUSTOM_a", "CUSTOM_A:1", "CUSTOM_A%0A", LONG, "HW_CPU_X86_AVX"]
)
async def test_names_that_nobody_may_give(face: Face, name: str) -> None:
    is_fault(await face.call("PUT", f"/traits/{name}"), 400)
    is_fault(await face.call("PUT", f"/resource_classes/{name}"), 400)
    is_fault(await face.call("POST", "/resource_classes", {"name": name}), 400)


async def test_lists_of_traits(face: Face) -> None:
    prefix = custom()
    for end in ("_A", "_B"):
        (await face.call("PUT", f"/traits/{prefix}{end}")).expect(201)
    provider = await face.provider()
    body = {"traits": [prefix + "_A"], "resource_provider_generation": 0}
    (await face.call("PUT", f"/resource_providers/{provider}/traits", body)).expect(200)

    async def listed(query: str) -> list[str]:
        found: list[str] = (await face.get(f"/traits?{query}"))["traits"]
        return [each.removeprefix(prefix) for each in found]

    assert await listed(f"name=startswith:{prefix}") == ["_A", "_B"]
    assert await listed(f"name=in:{prefix}_B,HW_CPU_X86_AVX,CUSTOM_NONE") == ["_B", "HW_CPU_X86_AVX"]
    assert await listed(f"name=startswith:{prefix}&associated=true") == ["_A"]
    assert await listed(f"name=startswith:{prefix}&associated=false") == ["_B"]
    assert "_A" in await listed("associated=True") and "_A" not in await listed("associated=false")
    assert len(await listed("")) >= len(standard.TRAITS) + 2
    for query in ("name=in_abc", "name=x", "associated=xyz", "invalid=abc", "name=in:A&name=in:B"):
        is_fault(await face.call("GET", f"/traits?{query}"), 400)
    is_fault(await face.call("DELETE", f"/traits/{prefix}_A"), 409)
    (await face.call("GET", f"/traits/{prefix}_A")).expect(204)
    is_fault(await face.call("DELETE", "/traits/HW_CPU_X86_AVX"), 400)
    (await face.call("GET", "/traits/HW_CPU_X86_AVX")).expect(204)


async def test_the_standard_names_are_those_of_openstack(face: Face) -> None:
    """The libraries that define them are not installed; these are the ones that Nova's code asks for."""
    classes = [each["name"] for each in (await face.get("/resource_classes"))["resource_classes"]]
    assert classes[:5] == ["VCPU", "MEMORY_MB", "DISK_GB", "PCI_DEVICE", "SRIOV_NET_VF"]
    assert {"VGPU", "PCPU", "NET_BW_EGR_KILOBIT_PER_SEC", "MEM_ENCRYPTION_CONTEXT"} <= set(classes)
    assert len(classes) == len(set(classes))
    traits = set((await face.get("/traits"))["traits"])
    assert {
        *("COMPUTE_NODE", "COMPUTE_STATUS_DISABLED", "COMPUTE_VOLUME_MULTI_ATTACH", "COMPUTE_TRUSTED_CERTS"),
        *("COMPUTE_NET_ATTACH_INTERFACE", "COMPUTE_IMAGE_TYPE_QCOW2", "COMPUTE_GRAPHICS_MODEL_VIRTIO"),
        *("COMPUTE_RESCUE_BFV", "COMPUTE_SECURITY_UEFI_SECURE_BOOT", "COMPUTE_STORAGE_BUS_VIRTIO"),
        *("HW_CPU_X86_AVX2", "HW_CPU_HYPERTHREADING", "HW_ARCH_X86_64", "MISC_SHARES_VIA_AGGREGATE"),
    } <= traits
    assert all(standard.is_name(each) for each in {*traits, *classes})


async def test_a_class_from_create_to_delete(face: Face) -> None:
    name = custom()
    path = f"/resource_classes/{name}"
    is_fault(await face.call("GET", path), 404)
    reply = await face.call("POST", "/resource_classes", {"name": name})
    assert reply.expect(201).headers["location"].endswith(path) and reply.content == b""
    is_fault(await face.call("POST", "/resource_classes", {"name": name}), 409)
    shown = {"name": name, "links": [{"rel": "self", "href": path}]}
    assert await face.get(path) == shown
    assert shown in (await face.get("/resource_classes"))["resource_classes"]
    (await face.call("PUT", path)).expect(204)
    provider = await face.provider(**{name: 5})
    is_fault(await face.call("DELETE", path), 409)
    assert (await face.get(path)) == shown
    (await face.call("DELETE", f"/resource_providers/{provider}")).expect(204)
    (await face.call("DELETE", path)).expect(204)
    is_fault(await face.call("DELETE", path), 404)
    (await face.call("PUT", path)).expect(201)
    is_fault(await face.call("DELETE", "/resource_classes/VCPU"), 400)
    for bad in ({}, {"name": 5}, {"name": custom(), "additional": 1}):
        is_fault(await face.call("POST", "/resource_classes", bad), 400)
    for method in ("GET", "PUT", "DELETE"):
        is_fault(await face.call(method, path, {"name": custom()}, v=1), 404)
    for method in ("GET", "POST"):
        is_fault(await face.call(method, "/resource_classes", {"name": custom()}, v=1), 404)


async def test_old_clients_rename_a_class(face: Face) -> None:
    old, new, taken = custom(), custom(), custom()
    for name in (old, taken):
        (await face.call("POST", "/resource_classes", {"name": name})).expect(201)
    provider = await face.provider(**{old: 5})
    consumer = str(uuid.uuid4())
    (await face.allocate(consumer, {provider: {old: 2}})).expect(204)
    path = f"/resource_classes/{old}"
    for name, status in ((taken, 409), ("VCPU", 400), ("x", 400)):
        is_fault(await face.call("PUT", path, {"name": name}, v=6), status)
    is_fault(await face.call("PUT", "/resource_classes/VCPU", {"name": custom()}, v=6), 400)
    is_fault(await face.call("PUT", f"/resource_classes/{custom()}", {"name": custom()}, v=6), 404)
    renamed = (await face.call("PUT", path, {"name": new}, v=6)).expect(200).json
    assert renamed["name"] == new
    is_fault(await face.call("GET", path), 404)
    assert (await face.get(f"/resource_providers/{provider}/usages"))["usages"] == {new: 2}
    held = (await face.get(f"/allocations/{consumer}"))["allocations"][provider]["resources"]
    assert held == {new: 2}
