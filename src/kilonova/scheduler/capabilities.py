"""ComputeCapabilitiesFilter: ``capabilities:...`` of a flavor, against what a host says of itself.

A value may begin with an operator, as in Nova: numbers with ``= == != >= <=`` (``=`` is at least), texts with
``s== s!= s< s<= s> s>=``, ``<in>``, ``<all-in>`` and ``<or>``; without one it must be the same text.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from kilonova.scheduler.request import HostState, ServerRequest

PREFIX = "capabilities"

_NUMBERS: dict[str, Callable[[float, float], bool]] = {
    "=": operator.ge,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "s==": operator.eq,
    "s!=": operator.ne,
    "s<": operator.lt,
    "s<=": operator.le,
    "s>": operator.gt,
    "s>=": operator.ge,
}

_FACTS: dict[str, Callable[[HostState], Any]] = {
    "host": lambda state: state.host.host,
    "host_ip": lambda state: state.host.host_ip,
    "hypervisor_hostname": lambda state: state.host.hypervisor_hostname,
    "hypervisor_type": lambda state: state.host.hypervisor_type,
    "hypervisor_version": lambda state: state.host.hypervisor_version,
    "cpu_info": lambda state: state.host.cpu_info,
    "uuid": lambda state: state.host.compute_id,
    "free_ram_mb": lambda state: state.free("MEMORY_MB"),
    "free_disk_gb": lambda state: state.free("DISK_GB"),
    "vcpus_used": lambda state: state.provider.used.get("VCPU", 0),
    "vcpus_total": lambda state: _total(state, "VCPU"),
    "memory_mb": lambda state: _total(state, "MEMORY_MB"),
    "total_usable_ram_mb": lambda state: _total(state, "MEMORY_MB"),
    "local_gb": lambda state: _total(state, "DISK_GB"),
    "total_usable_disk_gb": lambda state: _total(state, "DISK_GB"),
}


def _total(state: HostState, resource: str) -> int | None:
    inventory = state.provider.inventories.get(resource)
    return None if inventory is None else inventory.total


def capabilities(request: ServerRequest, state: HostState) -> str | None:
    """The reason for a no, or None."""
    for key, wanted in request.extra_specs.items():
        prefix, *path = key.split(":")
        if prefix != PREFIX or not path:
            continue
        name, have = ":".join(path), _fact(state, path)
        if have is None:
            return f"it does not say what its {name} is, and the flavor asks for '{wanted}'"
        if not matches(have, wanted):
            return f"its {name} is '{have}', the flavor asks for '{wanted}'"
    return None


def _fact(state: HostState, path: list[str]) -> Any:
    """What the host says; None when it does not."""
    get = _FACTS.get(path[0])
    found = None if get is None else get(state)
    for step in path[1:]:
        found = found.get(step) if isinstance(found, dict) else None
    return found


def matches(have: Any, wanted: str) -> bool:
    """Whether a fact is as it is wanted.  What cannot be compared does not match."""
    word, *rest = wanted.split() or [""]
    text = have if isinstance(have, str) else str(have)
    if not rest:
        return text == wanted
    if word in _NUMBERS:
        try:
            return _NUMBERS[word](float(text), float(rest[0]))
        except ValueError:
            return False
    if word in _TEXTS:
        return _TEXTS[word](text, rest[0])
    if word in ("<in>", "<all-in>"):
        among = have if isinstance(have, list | tuple) else text
        return all(one in among for one in (rest if word == "<all-in>" else rest[:1]))
    if word == "<or>":
        return text in rest[::2]
    return text == wanted
