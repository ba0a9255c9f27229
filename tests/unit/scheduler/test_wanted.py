"""What flavors and images ask of placement."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.errors import Invalid
from kilonova.model.flavor import Flavor
from kilonova.scheduler.trees import asked, needs_engine
from kilonova.scheduler.wanted import Group, Wanted, wanted_of


def flavor(specs: dict[str, str] | None = None, **more: Any) -> Flavor:
    values = {"id": 1, "flavorid": "1", "name": "f", "vcpus": 2, "memory_mb": 512, "root_gb": 3, **more}
    return Flavor(**values, extra_specs=specs or {})


def root(specs: dict[str, str] | None = None, properties: dict[str, str] | None = None, **more: Any) -> Group:
    return wanted_of(flavor(specs), properties or {}, **more).root


@pytest.mark.capability("UT-7", "RT-16")
def test_what_a_flavor_books() -> None:
    assert flavor().resources() == {"VCPU": 2, "MEMORY_MB": 512, "DISK_GB": 3}
    assert flavor(ephemeral_gb=4, swap_mb=1024).resources()["DISK_GB"] == 8
    assert flavor(swap_mb=1025).resources()["DISK_GB"] == 5  # a started GiB is one
    assert "DISK_GB" not in flavor(root_gb=0).resources()
    for one in (flavor(), flavor(ephemeral_gb=4, swap_mb=1025), flavor(root_gb=0)):
        assert wanted_of(one, {}) == Wanted(root=Group(one.resources()))
    volume = wanted_of(flavor(ephemeral_gb=4), {}, root_disk=False)
    assert volume.root.resources == {"VCPU": 2, "MEMORY_MB": 512, "DISK_GB": 4}


def test_extra_specs_go_before_the_numbers_of_a_flavor() -> None:
    specs = {
        "resources1:VCPU": "1",
        "resources:VCPU": "4",
        "resources:MEMORY_MB": "0",
        "resources:CUSTOM_GOLD": "7",
        "resources_NET:CUSTOM_GOLD": "2",
        "resources:DISK_GB": "many",
        "resource:DISK_GB": "9",
    }
    booked = {"VCPU": 5, "DISK_GB": 3, "CUSTOM_GOLD": 9}
    for one in (specs, dict(reversed(specs.items()))):
        assert flavor(one).resources() == booked
        found = wanted_of(flavor(one), {})
        assert found.root.resources == {"VCPU": 4, "DISK_GB": 3, "CUSTOM_GOLD": 7}
        assert found.groups == {"1": Group({"VCPU": 1}), "_NET": Group({"CUSTOM_GOLD": 2})}
        assert found.together() == booked


def test_traits_of_flavor_and_image_by_group() -> None:
    found = wanted_of(
        flavor(
            {
                "trait:HW_CPU_X86_AVX": "required",
                "trait:CUSTOM_OLD": "forbidden",
                "trait1:CUSTOM_FAST": "required",
                "resources1:CUSTOM_GOLD": "1",
                "trait:CUSTOM_ODD": "maybe",
                "traitor": "required",
                "group_policy": "isolate",
            }
        ),
        {"trait:CUSTOM_LICENSED": "required", "trait1:CUSTOM_SLOW": "forbidden"},
    )
    assert found.root.required == {"HW_CPU_X86_AVX", "CUSTOM_LICENSED"}
    assert found.root.forbidden == {"CUSTOM_OLD"}
    one = Group({"CUSTOM_GOLD": 1}, frozenset({"CUSTOM_FAST"}), frozenset({"CUSTOM_SLOW"}))
    assert (found.groups, found.isolate) == ({"1": one}, True)


@pytest.mark.parametrize(
    ("specs", "properties", "cpus"),
    [
        ({}, {}, {"VCPU": 2}),
        ({"hw:cpu_policy": "shared"}, {}, {"VCPU": 2}),
        ({"hw:cpu_policy": "dedicated"}, {}, {"PCPU": 2}),
        ({}, {"hw_cpu_policy": "dedicated"}, {"PCPU": 2}),
        ({"hw:cpu_policy": "dedicated", "hw:emulator_threads_policy": "isolate"}, {}, {"PCPU": 3}),
        ({"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "1"}, {}, {"VCPU": 1, "PCPU": 1}),
    ],
)
def test_processors(specs: dict[str, str], properties: dict[str, str], cpus: dict[str, int]) -> None:
    assert root(specs, properties).resources == {**cpus, "MEMORY_MB": 512, "DISK_GB": 3}


def test_what_contradicts_itself() -> None:
    with pytest.raises(Invalid):
        root({"hw:cpu_policy": "shared"}, {"hw_cpu_policy": "dedicated"})


@pytest.mark.parametrize(
    ("specs", "properties", "trait"),
    [
        ({"hw:tpm_version": "2.0"}, {}, "COMPUTE_SECURITY_TPM_2_0"),
        ({}, {"hw_tpm_version": "1.2"}, "COMPUTE_SECURITY_TPM_1_2"),
        ({"hw:virtio_packed_ring": "true"}, {}, "COMPUTE_NET_VIRTIO_PACKED"),
        ({}, {"hw_firmware_stateless": "yes"}, "COMPUTE_SECURITY_STATELESS_FIRMWARE"),
        ({"hw:viommu_model": "intel"}, {}, "COMPUTE_VIOMMU_MODEL_INTEL"),
        ({"hw:maxphysaddr_mode": "emulate"}, {}, "COMPUTE_ADDRESS_SPACE_EMULATED"),
        ({"hw:maxphysaddr_mode": "passthrough"}, {}, None),
        ({"hw:virtio_packed_ring": "false"}, {}, None),
        ({}, {"hw_vif_model": "e1000"}, None),
    ],
)
def test_words_that_stand_for_traits(specs: dict[str, str], properties: dict[str, str], trait: str) -> None:
    assert root(specs, properties).required == ({trait} if trait else set())


def test_what_is_asked_for_only_when_it_is_switched_on() -> None:
    devices = {"hw_vif_model": "virtio", "hw_disk_bus": "scsi", "hw_video_model": "vga"}
    assert root({}, devices).required == set()
    assert root({}, devices, image_traits=True).required == {
        "COMPUTE_NET_VIF_MODEL_VIRTIO",
        "COMPUTE_STORAGE_BUS_SCSI",
        "COMPUTE_GRAPHICS_MODEL_VGA",
    }
    assert root({}, {}, disk_format="qcow2").required == {"COMPUTE_IMAGE_TYPE_QCOW2"}


def test_encrypted_memory_is_a_resource() -> None:
    for specs, properties in (({"hw:mem_encryption": "True"}, {}), ({}, {"hw_mem_encryption": "1"})):
        assert root(specs, properties).resources["MEM_ENCRYPTION_CONTEXT"] == 1
    assert "MEM_ENCRYPTION_CONTEXT" not in root({"hw:mem_encryption": "no"}).resources


def test_when_placements_engine_is_needed() -> None:
    plain = wanted_of(flavor(), {})
    several = wanted_of(flavor({"resources1:VGPU": "1", "resources2:VGPU": "1"}), {})
    apart = wanted_of(flavor({"resources1:VGPU": "1", "resources2:VGPU": "1", "group_policy": "isolate"}), {})
    picky = wanted_of(flavor({"trait:CUSTOM_X": "required"}), {})
    for wanted, elsewhere, needed in (
        (plain, frozenset(), False),
        (plain, frozenset({"VGPU", "CUSTOM_X"}), False),
        (plain, frozenset({"DISK_GB"}), True),
        (several, frozenset(), False),
        (several, frozenset({"VGPU"}), True),
        (apart, frozenset(), True),
        (picky, frozenset({"CUSTOM_X"}), True),
    ):
        assert needs_engine(wanted, frozenset(elsewhere)) is needed
    found = asked(apart, 7)
    assert (found.isolate, found.limit) == (True, 7)
    assert [(each.suffix, each.resources) for each in found.groups] == [
        ("", (("DISK_GB", 3), ("MEMORY_MB", 512), ("VCPU", 2))),
        ("_1", (("VGPU", 1),)),
        ("_2", (("VGPU", 1),)),
    ]
