"""Extra specs of flavors: which keys and values are understood, and the old form of a flavor in metadata."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Invalid
from kilonova.model.flavor import Flavor
from kilonova.resources import flavor_specs as specs

GOOD = {
    "hw:cpu_policy": ("dedicated", "shared", "mixed"),
    "hw:cpu_sockets": ("1", "16"),
    "hw:cpu_dedicated_mask": ("0-3,^2", "1"),
    "hw:mem_page_size": ("large", "any", "2048", "1GiB", "2MB"),
    "hw:numa_nodes": ("1",),
    "hw:numa_cpus.0": ("0,1", "0-3"),
    "hw:numa_mem.12": ("512",),
    "hw:boot_menu": ("true", "No", "1"),
    "hw:pmem": ("4GB,4GB,SMALL",),
    "hw_rng:rate_bytes": ("0", "100"),
    "hw_video:ram_max_mb": ("64",),
    "os:secure_boot": ("required", "disabled"),
    "quota:cpu_shares": ("1024",),
    "quota:disk_read_bytes_sec": ("10",),
    "quota:disk_io_reservation": ("-5",),
    "resources:VCPU": ("2",),
    "resources1:CUSTOM_GOLD": ("1",),
    "trait:HW_CPU_X86_AVX2": ("required", "forbidden"),
    "trait_NET:CUSTOM_FAST": ("required",),
    "capabilities:cpu_info:features": ("<in> avx",),
    "aggregate_instance_extra_specs:ssd": ("anything",),
    "pci_passthrough:alias": ("a1:2", "a1:2, b:1"),
    "accel:device_profile": ("x",),
    "group_policy": ("none", "isolate"),
    "acme:whatever": ("", "x"),
    "plain": ("x",),
}
BAD = {
    "hw:cpu_policy": ("", "sharred", "Dedicated"),
    "hw:cpu_sockets": ("0", "-1", "one", "", "1.0", "9" * 30),
    "hw:cpu_dedicated_mask": ("", "a", "1-", "0,,1"),
    "hw:mem_page_size": ("", "big", "2 MB", "-1"),
    "hw:boot_menu": ("maybe", ""),
    "hw:nothing": ("1",),
    "hw:numa_cpus.x": ("0",),
    "hw:numa_mem.": ("1",),
    "hw_rng:rate_bytes": ("-1",),
    "os:secure_boot": ("on",),
    "quota:cpu_shares": ("many",),
    "resources:NOTHING": ("1",),
    "resources:VCPU": ("x",),
    "trait:lower": ("required",),
    "trait:HW_X": ("wanted",),
    "capabilities:nothing": ("x",),
    "pci_passthrough:alias": ("a1", "a1:x"),
    "group_policy": ("all",),
}


@pytest.mark.parametrize("key", list(GOOD))
def test_values_that_are_understood(key: str) -> None:
    for value in GOOD[key]:
        specs.check_spec(key, value)


@pytest.mark.parametrize("key", list(BAD))
def test_values_that_are_not(key: str) -> None:
    for value in BAD[key]:
        with pytest.raises(Invalid, match="Validation failed"):
            specs.check_spec(key, value)


@given(st.text(max_size=300), st.text(max_size=300))
def test_no_text_breaks_it(key: str, value: str) -> None:
    for check in (lambda: specs.check_key(key), lambda: specs.check_spec(f"hw:{key}", value)):
        try:
            check()
        except Invalid as error:
            assert len(str(error)) < 1500


def test_who_may_use_a_flavor() -> None:
    public = Flavor(id=1, flavorid="1", name="f", vcpus=1, memory_mb=1, root_gb=1)
    private = Flavor(
        id=2, flavorid="2", name="g", vcpus=1, memory_mb=1, root_gb=1, is_public=False, projects=("p1",)
    )
    assert specs.may_use(public, "p2", False) and specs.may_use(private, "p1", False)
    assert not specs.may_use(private, "p2", False) and not specs.may_use(private, None, False)
    assert specs.may_use(private, None, True)


@pytest.mark.capability("FL-8")
def test_the_old_form_of_a_flavor_in_metadata() -> None:
    kept = {"hw:numa_cpus.0": "0,1", "hw:numa_mem.0": "512"}
    flavor = Flavor(
        id=7,
        flavorid="f7",
        name="odd",
        vcpus=2,
        memory_mb=512,
        root_gb=3,
        ephemeral_gb=4,
        swap_mb=5,
        rxtx_factor=1.5,
        extra_specs={**kept, "hw:cpu_policy": "shared"},
    )
    stored = specs.to_metadata(flavor, "old_")
    assert stored == {
        "old_instance_type_id": "7",
        "old_instance_type_flavorid": "f7",
        "old_instance_type_name": "odd",
        "old_instance_type_vcpus": "2",
        "old_instance_type_memory_mb": "512",
        "old_instance_type_root_gb": "3",
        "old_instance_type_ephemeral_gb": "4",
        "old_instance_type_swap": "5",
        "old_instance_type_rxtx_factor": "1.5",
        "old_instance_type_vcpu_weight": "0",
        "old_instance_type_extra_hw:numa_cpus.0": "0,1",
        "old_instance_type_extra_hw:numa_mem.0": "512",
    }
    back = specs.from_metadata({**stored, "else": "x"}, "old_")
    assert back == Flavor(
        id=7,
        flavorid="f7",
        name="odd",
        vcpus=2,
        memory_mb=512,
        root_gb=3,
        ephemeral_gb=4,
        swap_mb=5,
        rxtx_factor=1.5,
        extra_specs=kept,
    )
    assert specs.from_metadata(stored, "new_") is None
    assert specs.from_metadata({}) is None
