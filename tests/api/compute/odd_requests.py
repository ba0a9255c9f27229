"""Requests about servers that are right, but for a field or two in which anything may stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from kilonova.api import server_filters
from tests.api.compute import facts
from tests.api.compute.whole_cloud import FLAVOR, NOBODYS

VERSIONS = st.sampled_from([1, 18, 19, 32, 36, 37, 42, 51, 52, 56, 57, 63, 67, 73, 74, 75, 83, 90, 94, 104])

TEXT = st.text(max_size=300) | st.sampled_from(
    ["", " ", "x" * 255, "x" * 256, "%s", "%00", "'; DROP TABLE instances; --", "☃", "\u202e", "auto", "none"]
)
# what a path can be decoded to
PATH_TEXT = TEXT.filter(lambda text: not re.search("[\ud800-\udfff?]", text))
NUMBER = st.integers(-(2**63), 2**63) | st.sampled_from([0, -1, 2**31 - 1, 2**31])
SCALAR = st.none() | st.booleans() | NUMBER | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)

NETWORK: list[dict[str, Any]] = [
    {"uuid": "NETWORK"},
    {"uuid": "NETWORK", "fixed_ip": "10.11.0.99"},
    {"uuid": "NETWORK", "fixed_ip": "10.11.255.255"},
    {"uuid": NOBODYS},
    {"port": NOBODYS},
    {"uuid": "NETWORK", "tag": "nic"},
]
DEVICE = {"source_type": "image", "destination_type": "local", "uuid": "IMAGE", "boot_index": 0}
GOOD: dict[str, list[Any]] = {
    "name": ["n", "ü ☃", "x" * 255],
    "flavorRef": [FLAVOR, 42, "c1", "none"],
    "imageRef": ["IMAGE", "IMAGE", "IMAGE", "", NOBODYS],
    "networks": [[], [NETWORK[0]], [NETWORK[0]] * 3, *([each] for each in NETWORK)],
    "adminPass": ["secret", ""],
    "metadata": [{}, {"k": "v"}, {"a b": "", "c": "x" * 255}],
    "OS-DCF:diskConfig": ["AUTO", "MANUAL"],
    "accessIPv4": ["1.2.3.4"],
    "accessIPv6": ["::1"],
    "personality": [[], [{"path": "/a", "contents": "aGk="}]],
    "availability_zone": ["nova", "nova:moon", "nova::moon", "moon"],
    "block_device_mapping_v2": [
        [],
        [DEVICE],
        [{**DEVICE, "boot_index": "0", "delete_on_termination": "yes"}],
    ],
    "config_drive": [True, "False", "1"],
    "key_name": ["k"],
    "min_count": [1, "1", 2, 3],
    "max_count": [1, "2", 4, 2**31 - 1],
    "return_reservation_id": [True, "False"],
    "security_groups": [[], [{"name": "default"}], [{"name": "x"}]],
    "user_data": ["", "aGk=", "x"],
    "description": ["text", None, ""],
    "tags": [[], ["a", "b"]],
    "trusted_image_certificates": [None, [NOBODYS]],
    "host": ["moon", "HOST"],
    "hypervisor_hostname": ["HOST"],
    "hostname": ["web"],
}
HINTS = [{}, {"group": NOBODYS}, {"same_host": NOBODYS}, {"query": "[1]"}, {"own": {"a": [1.5, None]}}]


def _existing(version: int) -> list[str]:
    known = facts.facts("body")["servers.create"]
    return [name for name in GOOD if known[f"server.{name}"].exists(version)]


@st.composite
def creates(draw: Callable[..., Any]) -> tuple[int, dict[str, Any]]:
    """A microversion and a body for it."""
    version = draw(VERSIONS)
    server: dict[str, Any] = {"name": "n", "flavorRef": FLAVOR, "imageRef": "IMAGE"}
    if version >= 37:
        server["networks"] = draw(st.sampled_from(["none", "none", "auto"]))
    for name in draw(st.lists(st.sampled_from(_existing(version)), max_size=6, unique=True)):
        server[name] = draw(st.sampled_from(GOOD[name]))
    for name in draw(st.sampled_from([0, 0, 1, 2]).flatmap(_some_fields)):
        server[name] = draw(JSON)
    body: dict[str, Any] = {"server": server}
    if draw(st.booleans()):
        body["os:scheduler_hints"] = draw(st.sampled_from(HINTS))
    return version, body


def _some_fields(number: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from([*GOOD, "x"]), min_size=number, max_size=number)


@st.composite
def updates(draw: Callable[..., Any]) -> dict[str, Any]:
    fields = ["name", "description", "accessIPv4", "accessIPv6", "hostname", "OS-DCF:diskConfig"]
    server = {name: draw(st.sampled_from(GOOD[name])) for name in draw(st.lists(st.sampled_from(fields)))}
    odd = st.lists(st.sampled_from([*fields, "pinned_availability_zone", "x"]), max_size=1)
    return {"server": server | {name: draw(JSON) for name in draw(odd)}}


ACTION = st.sampled_from(
    [
        {"os-start": None},
        {"os-stop": None},
        {"reboot": {"type": "HARD"}},
        {"reboot": {"type": "SOFT"}},
        {"lock": None},
        {"unlock": None},
        {"os-resetState": {"state": "error"}},
        {"os-resetState": {"state": "active"}},
        {"os-getConsoleOutput": {"length": 3}},
    ]
)
ODD_ACTION = st.dictionaries(
    st.sampled_from(["os-start", "reboot", "lock", "os-resetState", "os-getConsoleOutput"]) | TEXT,
    JSON,
    max_size=2,
)


@st.composite
def events(draw: Callable[..., Any]) -> list[Any]:
    names = [
        "network-changed",
        "network-vif-plugged",
        "network-vif-deleted",
        "power-update",
        "volume-extended",
    ]
    good = st.fixed_dictionaries(
        {"name": st.sampled_from(names), "server_uuid": st.sampled_from([NOBODYS, "SERVER", "SERVER"])},
        optional={"status": st.sampled_from(["completed", "failed"]), "tag": st.sampled_from(["t", NOBODYS])},
    )
    found = draw(st.lists(good, min_size=1, max_size=4))
    if draw(st.sampled_from([False, False, True])):
        found[0][draw(st.sampled_from(["name", "server_uuid", "status", "tag", "x"]))] = draw(JSON)
    return found


_VALUES = """
1 0 -1 true active ACTIVE DELETED asc desc uuid display_name created_at host a,b ,,, %s
2026-01-01T00:00:00Z 0001-01-01T00:00:00+23:59 9999-12-31T23:59:59-23:59 10.11.0.1 fd00::
^a.*b$ (a|b)c [a-z]+ a{2,300} \\d+ \\1 (?i)a (?=a) (((( ]] ** 99999999999999999999 1e9 \u0663
"""
PAIRS = st.lists(
    st.tuples(
        st.sampled_from([*server_filters.KEYS.known, "x", "_x"]) | TEXT,
        st.sampled_from(_VALUES.split()) | st.sampled_from([NOBODYS, "SERVER", ""]) | TEXT,
    ),
    max_size=5,
)
