"""What is to be done with each server of a host that is to be emptied."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

LIVE, COLD, EVACUATE, STAY = "live", "cold", "evacuate", "stay"
WAYS = (LIVE, COLD, EVACUATE)
METADATA_KEY = "drain_policy"
FLAVOR_KEY = "drain:policy"

FITS = {
    LIVE: frozenset({"active", "paused"}),
    COLD: frozenset({"active", "stopped"}),
    EVACUATE: frozenset({"active", "stopped", "error"}),
}
"""Way -> the vm_states in which a server can go that way."""

UNDER_WAY = frozenset(
    {
        "accepted",
        "queued",
        "preparing",
        "running",
        "running (post-copy)",
        "pre-migrating",
        "migrating",
        "post-migrating",
        "finished",
        "confirming",
        "reverting",
    }
)
"""Statuses of migrations that still concern both of their hosts."""


class Server(msgspec.Struct, frozen=True, kw_only=True):
    uuid: str
    name: str
    vm_state: str
    task_state: str | None = None
    metadata: Mapping[str, str] = {}
    extra_specs: Mapping[str, str] = {}  # of its flavor

    @classmethod
    def of_api(cls, shown: Mapping[str, Any]) -> Server:
        """As the API shows it, from 2.47 on."""
        return cls(
            uuid=shown["id"],
            name=shown["name"],
            vm_state=shown["OS-EXT-STS:vm_state"],
            task_state=shown["OS-EXT-STS:task_state"],
            metadata=shown.get("metadata") or {},
            extra_specs=shown["flavor"].get("extra_specs") or {},
        )


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """A move of a server, as the API lists it."""

    uuid: str
    instance_uuid: str
    kind: str
    status: str
    source: str | None = None
    destination: str | None = None


class Plan(msgspec.Struct, frozen=True):
    """``way`` None: it is not moved (now), for the reason ``why``; ``waits``: not yet."""

    way: str | None
    why: str = ""
    waits: bool = False


def read_policy(text: str) -> tuple[str, ...]:
    """``live,cold``: ways in the order in which they are tried; ``stay``: none.  Raises ValueError."""
    words = tuple(word.strip().lower() for word in text.split(",") if word.strip())
    unknown = [word for word in words if word not in (*WAYS, STAY)]
    if unknown or not words or (STAY in words and len(words) > 1):
        raise ValueError(
            f"'{text}' is none of {', '.join(WAYS)} (several with commas between them) or {STAY}"
        )
    return words


def policy_of(server: Server, default: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """The ways that a server may go, and who says so: its metadata, its flavor, or the command.

    What cannot be read keeps the server where it is.
    """
    for whose, said in (
        ("its metadata", server.metadata.get(METADATA_KEY)),
        ("its flavor", server.extra_specs.get(FLAVOR_KEY)),
    ):
        if said is not None:
            try:
                return read_policy(said), whose
            except ValueError:
                return (STAY,), f"{whose} says '{said}', which is no policy"
    return tuple(default), "the command"


def plan_for(
    server: Server, default: Sequence[str], *, host_is_up: bool, failed: Collection[str] = ()
) -> Plan:
    """How it goes, if it can; ``failed``: the ways that were tried in vain."""
    ways, whose = policy_of(server, default)
    if STAY in ways:
        return Plan(None, f"it is to stay, by {whose}" if whose != "the command" else "it is to stay")
    if server.task_state is not None:
        return Plan(None, f"it is {server.task_state}", waits=True)
    if server.vm_state == "building":
        return Plan(None, "it is being built", waits=True)
    possible = [way for way in ways if (way == EVACUATE) != host_is_up]
    if not possible:
        return Plan(None, _no_way(ways, whose, host_is_up))
    fitting = [way for way in possible if server.vm_state in FITS[way]]
    if not fitting:
        return Plan(None, f"it is {server.vm_state}, and {' and '.join(possible)} cannot move such a server")
    left = [way for way in fitting if way not in failed]
    if not left:
        return Plan(None, f"{' and '.join(fitting)} failed")
    return Plan(left[0])


def _no_way(ways: Sequence[str], whose: str, host_is_up: bool) -> str:
    if not host_is_up:
        return f"the host is down, and evacuate is not among the ways of {whose} ({', '.join(ways)})"
    return f"the host is up, and {whose} says only evacuate"
