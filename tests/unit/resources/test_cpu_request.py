"""Floating and pinned CPUs, as flavors and images ask for them."""

from __future__ import annotations

import pytest

from kilonova.errors import Invalid
from kilonova.resources.cpu_request import Processors, processors
from kilonova.resources.wishes import Wishes
from tests.unit.resources.numa import flavor_with


def of(specs: dict[str, str], image: dict[str, str] | None = None, vcpus: int = 4) -> Processors:
    return processors(Wishes(flavor_with(specs, vcpus), image or {}))


def test_cpus_float_when_nothing_is_said() -> None:
    assert of({}) == Processors(count=4)
    assert of({}).resources() == {"VCPU": 4}


@pytest.mark.parametrize(
    ("specs", "image", "expected"),
    [
        ({"hw:cpu_policy": "dedicated"}, {}, {"PCPU": 4}),
        ({"hw:cpu_policy": "shared"}, {}, {"VCPU": 4}),
        ({}, {"hw_cpu_policy": "dedicated"}, {"PCPU": 4}),
        ({"hw:cpu_policy": "dedicated"}, {"hw_cpu_policy": "shared"}, {"PCPU": 4}),
        ({"hw:cpu_policy": "shared"}, {"hw_cpu_policy": "shared"}, {"VCPU": 4}),
        ({"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "0-1"}, {}, {"VCPU": 2, "PCPU": 2}),
        ({"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "^0"}, {}, {"VCPU": 1, "PCPU": 3}),
        ({"hw:cpu_policy": "dedicated", "hw:emulator_threads_policy": "isolate"}, {}, {"PCPU": 5}),
        ({"hw:cpu_policy": "dedicated", "hw:emulator_threads_policy": "share"}, {}, {"PCPU": 4}),
        ({"hw:cpu_policy": "dedicated"}, {"hw_emulator_threads_policy": "isolate"}, {"PCPU": 5}),
        ({"resources:PCPU": "4"}, {}, {"PCPU": 4}),
        ({"resources:PCPU": "5", "hw:emulator_threads_policy": "isolate"}, {}, {"PCPU": 5}),
        (
            {"hw:cpu_policy": "mixed", "hw:cpu_realtime": "yes", "hw:cpu_realtime_mask": "^0-2"},
            {},
            {"VCPU": 3, "PCPU": 1},
        ),
    ],
)
def test_what_cpus_are_in_placement(
    specs: dict[str, str], image: dict[str, str], expected: dict[str, int]
) -> None:
    assert of(specs, image).resources() == expected


def test_which_cpus_of_a_mixed_guest_are_pinned() -> None:
    assert of({"hw:cpu_policy": "mixed", "hw:cpu_dedicated_mask": "1,3"}).dedicated == {1, 3}


@pytest.mark.parametrize(
    ("specs", "image", "policy"),
    [
        ({"hw:cpu_thread_policy": "require"}, {}, "require"),
        ({}, {"hw_cpu_thread_policy": "isolate"}, "isolate"),
        ({"hw:cpu_thread_policy": "prefer"}, {"hw_cpu_thread_policy": "isolate"}, "isolate"),
        ({"hw:cpu_thread_policy": "isolate"}, {"hw_cpu_thread_policy": "isolate"}, "isolate"),
        ({}, {}, None),
    ],
)
def test_thread_policies(specs: dict[str, str], image: dict[str, str], policy: str | None) -> None:
    assert of({"hw:cpu_policy": "dedicated", **specs}, image).threads == policy


@pytest.mark.parametrize(
    ("specs", "image", "realtime"),
    [
        ({"hw:cpu_realtime": "true", "hw:cpu_realtime_mask": "^0"}, {}, "1-3"),
        ({"hw:cpu_realtime": "true", "hw:cpu_realtime_mask": "2-3"}, {}, "2-3"),
        ({"hw:cpu_realtime": "true", "hw:cpu_realtime_mask": "^0"}, {"hw_cpu_realtime_mask": "^0-1"}, "2-3"),
        ({"hw:cpu_realtime": "true", "hw:emulator_threads_policy": "isolate"}, {}, "0-3"),
        ({"hw:cpu_realtime": "no", "hw:cpu_realtime_mask": "^0"}, {}, None),
    ],
)
def test_real_time_cpus(specs: dict[str, str], image: dict[str, str], realtime: str | None) -> None:
    assert of({"hw:cpu_policy": "dedicated", **specs}, image).realtime == realtime


D = {"hw:cpu_policy": "dedicated"}
M = {"hw:cpu_policy": "mixed"}


@pytest.mark.parametrize(
    ("specs", "image", "words"),
    [
        ({"hw:cpu_policy": "pinned"}, {}, "must be one of"),
        ({}, {"hw_cpu_policy": "Dedicated"}, "must be one of"),
        ({"hw:cpu_policy": "shared"}, {"hw_cpu_policy": "dedicated"}, "not allowed"),
        ({"hw:cpu_policy": "shared"}, {"hw_cpu_policy": "mixed"}, "not allowed"),
        ({**M, "hw:cpu_dedicated_mask": "0"}, {"hw_cpu_policy": "dedicated"}, "not allowed"),
        ({"hw:cpu_thread_policy": "require"}, {}, "needs the CPU policy"),
        ({}, {"hw_cpu_thread_policy": "prefer"}, "needs the CPU policy"),
        ({**D, "hw:cpu_thread_policy": "some"}, {}, "must be one of"),
        ({**D, "hw:cpu_thread_policy": "require"}, {"hw_cpu_thread_policy": "isolate"}, "not allowed"),
        ({"hw:emulator_threads_policy": "isolate"}, {}, "need the CPU policy"),
        ({**D, "hw:emulator_threads_policy": "own"}, {}, "must be one of"),
        (
            {**D, "hw:emulator_threads_policy": "share"},
            {"hw_emulator_threads_policy": "isolate"},
            "not allowed",
        ),
        ({"hw:cpu_realtime": "yes"}, {}, "need the CPU policy"),
        ({**D, "hw:cpu_realtime": "perhaps"}, {}, "true or false"),
        ({**D, "hw:cpu_realtime": "yes"}, {}, "hw:cpu_realtime_mask"),
        ({**D, "hw:cpu_realtime": "yes", "hw:cpu_realtime_mask": "0-3"}, {}, "no CPU for the emulator"),
        ({**D, "hw:cpu_realtime": "yes", "hw:cpu_realtime_mask": "^0-3"}, {}, "no real-time CPU"),
        ({**D, "hw:cpu_realtime": "yes", "hw:cpu_realtime_mask": "1-9"}, {}, "does not have: 4-9"),
        ({**D, "hw:cpu_realtime": "yes", "hw:cpu_realtime_mask": "x"}, {}, "not valid"),
        ({**D, "hw:cpu_dedicated_mask": "0"}, {}, "needs hw:cpu_policy 'mixed'"),
        ({"hw:cpu_dedicated_mask": "0"}, {}, "needs hw:cpu_policy 'mixed'"),
        (M, {}, "either hw:cpu_dedicated_mask or"),
        (
            {**M, "hw:cpu_dedicated_mask": "0", "hw:cpu_realtime": "1", "hw:cpu_realtime_mask": "0"},
            {},
            "not both",
        ),
        ({**M, "hw:cpu_dedicated_mask": "0-3"}, {}, "at least one dedicated and one shared"),
        ({**M, "hw:cpu_dedicated_mask": "^0-3"}, {}, "at least one dedicated and one shared"),
        ({**M, "hw:cpu_dedicated_mask": "7"}, {}, "does not have: 7"),
        ({"resources:PCPU": "3"}, {}, "need 4"),
        ({"resources:PCPU": "4", "hw:emulator_threads_policy": "isolate"}, {}, "need 5"),
        ({"resources:PCPU": "2", "resources:VCPU": "2"}, {}, "cannot have both"),
        ({"resources:PCPU": "4", **D}, {}, "one or the other"),
        ({"resources:VCPU": "4"}, {"hw_cpu_policy": "dedicated"}, "one or the other"),
    ],
)
def test_what_makes_no_sense_is_refused(specs: dict[str, str], image: dict[str, str], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        of(specs, image)
