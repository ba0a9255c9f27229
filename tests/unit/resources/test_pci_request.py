"""Aliases of devices, and flavors that ask for them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Invalid
from kilonova.resources.pci_request import FLAVOR_KEY, of_flavor, read_aliases
from tests.unit.resources.numa import flavor_with

GPU = {"name": "gpu", "vendor_id": "10DE", "product_id": "1eb8"}


def aliases(*values: dict[str, Any]) -> dict[str, Any]:
    return read_aliases([json.dumps(value) for value in values])


@pytest.mark.parametrize(
    ("more", "spec"),
    [
        ({}, {}),
        ({"device_type": "type-VF"}, {"dev_type": "type-VF"}),
        ({"capability_type": "pci"}, {}),
        ({"resource_class": "gpu-t4"}, {"resource_class": "CUSTOM_GPU_T4"}),
        ({"resource_class": "CUSTOM_GPU"}, {"resource_class": "CUSTOM_GPU"}),
        ({"resource_class": "pgpu"}, {"resource_class": "PGPU"}),
        ({"traits": "blue, HW_NIC_SRIOV"}, {"traits": "CUSTOM_BLUE,HW_NIC_SRIOV"}),
        ({"live_migratable": "yes"}, {"live_migratable": "true"}),
        ({"live_migratable": False}, {"live_migratable": "false"}),
    ],
)
def test_one_alias(more: dict[str, Any], spec: dict[str, str]) -> None:
    found = aliases({**GPU, **more})["gpu"]
    assert found.specs == ({"dev_type": "type-PCI", "vendor_id": "10de", "product_id": "1eb8", **spec},)
    assert found.numa_policy is None


def test_a_resource_class_alone_will_do() -> None:
    assert aliases({"name": "a", "resource_class": "FPGA"})["a"].specs == (
        {"dev_type": "type-PCI", "resource_class": "FPGA"},
    )


def test_an_alias_given_twice_has_alternatives() -> None:
    found = aliases(
        {**GPU, "numa_policy": "required"}, {**GPU, "product_id": "2235", "numa_policy": "required"}
    )
    assert [spec["product_id"] for spec in found["gpu"].specs] == ["1eb8", "2235"]
    assert found["gpu"].numa_policy == "required"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["{"], "not valid"),
        (["[]"], "not valid"),
        (['{"vendor_id": "8086", "product_id": "1234"}'], "name"),
        (['{"name": "", "vendor_id": "8086", "product_id": "1234"}'], "not valid"),
        (['{"name": "a", "vendor_id": "8086"}'], "needs vendor_id and product_id"),
        (['{"name": "a", "vendor_id": "808", "product_id": "1234"}'], "not valid"),
        (['{"name": "a", "vendor_id": "8086", "product_id": "12345"}'], "not valid"),
        (['{"name": "a", "vendor_id": "8086", "product_id": "1234\\n"}'], "not valid"),
        (['{"name": "a", "vendor_id": "8086", "product_id": "1234", "device_type": "VF"}'], "not valid"),
        (['{"name": "a", "vendor_id": "8086", "product_id": "1234", "numa_policy": "near"}'], "not valid"),
        (['{"name": "a", "vendor_id": "8086", "product_id": "1234", "colour": "red"}'], "unknown field"),
        (['{"name": "a", "vendor_id": 8086, "product_id": "1234"}'], "not valid"),
        (
            ['{"name": "a", "vendor_id": "8086", "product_id": "1234", "live_migratable": "so"}'],
            "yes or no",
        ),
        (
            [json.dumps(GPU), json.dumps({**GPU, "numa_policy": "required"})],
            "two numa_policies",
        ),
        ([json.dumps(GPU), json.dumps({**GPU, "device_type": "type-PF"})], "two device_types"),
    ],
)
def test_aliases_that_are_none(values: list[str], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        read_aliases(values)


@given(st.text(max_size=60) | st.dictionaries(st.text(max_size=8), st.text(max_size=8)).map(json.dumps))
def test_any_text_is_an_alias_or_refused(text: str) -> None:
    with contextlib.suppress(Invalid):
        assert read_aliases([text])


KNOWN = aliases(GPU, {"name": "nic", "vendor_id": "8086", "product_id": "1515", "numa_policy": "preferred"})


def test_flavors_ask_by_aliases() -> None:
    found = of_flavor(flavor_with({FLAVOR_KEY: "gpu:2, nic:1"}), {}, KNOWN)
    assert [(one.id, one.alias, one.count, one.numa_policy) for one in found] == [
        ("flavor-0", "gpu", 2, None),
        ("flavor-1", "nic", 1, "preferred"),
    ]
    assert found[0].specs == KNOWN["gpu"].specs
    assert of_flavor(flavor_with({}), {}, KNOWN) == ()


@pytest.mark.parametrize(
    ("specs", "image", "policies"),
    [
        ({"hw:pci_numa_affinity_policy": "socket"}, {}, ["socket", "socket"]),
        ({}, {"hw_pci_numa_affinity_policy": "required"}, ["required", "required"]),
        (
            {"hw:pci_numa_affinity_policy": "legacy"},
            {"hw_pci_numa_affinity_policy": "legacy"},
            ["legacy", "legacy"],
        ),
    ],
)
def test_flavor_and_image_say_more_than_the_alias(
    specs: dict[str, str], image: dict[str, str], policies: list[str]
) -> None:
    found = of_flavor(flavor_with({FLAVOR_KEY: "gpu:1,nic:1", **specs}), image, KNOWN)
    assert [one.numa_policy for one in found] == policies


@pytest.mark.parametrize(
    ("asked", "specs", "image", "words"),
    [
        ("tpu:1", {}, {}, "PCI alias tpu is not defined"),
        ("gpu", {}, {}, "not valid"),
        ("gpu:0", {}, {}, "not valid"),
        ("gpu:-1", {}, {}, "not valid"),
        ("gpu:999", {}, {}, "not valid"),
        ("gpu:1,", {}, {}, "not valid"),
        ("gpu:1", {"hw:pci_numa_affinity_policy": "close"}, {}, "must be one of"),
        (
            "gpu:1",
            {"hw:pci_numa_affinity_policy": "socket"},
            {"hw_pci_numa_affinity_policy": "legacy"},
            "not allowed",
        ),
    ],
)
def test_what_flavors_may_not_ask(
    asked: str, specs: dict[str, str], image: dict[str, str], words: str
) -> None:
    with pytest.raises(Invalid, match=words):
        of_flavor(flavor_with({FLAVOR_KEY: asked, **specs}), image, KNOWN)
