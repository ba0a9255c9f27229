"""How the processors of a guest are shown to it: sockets, cores, threads."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kilonova.errors import Failed


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    sockets: int = 1
    cores: int = 1
    threads: int = 1


PARTS = ("sockets", "cores", "threads")


def choose_topology(vcpus: int, wanted: Mapping[str, int | None], most: Mapping[str, int | None]) -> Topology:
    """The topology of ``vcpus`` processors that has as many of the wanted numbers as can be.

    Among equals, sockets before cores before threads, as Nova chooses.  Raises Failed when the limits leave
    none.
    """
    limits = [most.get(part) or vcpus for part in PARTS]
    possible = [
        (sockets, cores, vcpus // sockets // cores)
        for sockets in range(1, vcpus + 1)
        if vcpus % sockets == 0
        for cores in range(1, vcpus // sockets + 1)
        if (vcpus // sockets) % cores == 0
    ]
    allowed = [each for each in possible if all(n <= limit for n, limit in zip(each, limits, strict=True))]
    if not allowed:
        shown = ", ".join(f"{part} {limit}" for part, limit in zip(PARTS, limits, strict=True))
        raise Failed(f"{vcpus} processors do not fit into the limits that flavor and image set: {shown}.")
    asked = [wanted.get(part) for part in PARTS]

    def rank(each: tuple[int, int, int]) -> tuple[int, int, int, int]:
        return (sum(a == b for a, b in zip(each, asked, strict=True)), *each)

    sockets, cores, threads = max(allowed, key=rank)
    return Topology(sockets=sockets, cores=cores, threads=threads)
