"""The NUMA cells that a flavor and an image ask for.

The words are Nova's: hw:numa_nodes, hw:numa_cpus.N, hw:numa_mem.N, hw:mem_page_size and those of
`kilonova.resources.cpu_request`.  Pinned CPUs and large pages imply one cell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from kilonova.errors import Invalid
from kilonova.model.cpus import format_cpus, parse_cpus
from kilonova.model.flavor import Flavor
from kilonova.model.numa import GuestCell, GuestTopology
from kilonova.resources.cpu_request import Processors, processors
from kilonova.resources.wishes import Wishes

SMALL, LARGE, ANY = "small", "large", "any"
MOST_CELLS = 1024

_SIZE = re.compile(r"(\d{1,9})(?:([kKMGT])i?)?(b|bit|B)?", re.ASCII)
_UNITS = {"": 1, "k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_CONCERNED = (
    "hw:cpu_",
    "hw:numa_",
    "hw:mem_page_size",
    "hw:emulator_threads_policy",
    "hw:locked_memory",
    "hw_cpu_",
    "hw_numa_",
    "hw_mem_page_size",
    "hw_emulator_threads_policy",
    "hw_locked_memory",
    "resources:PCPU",
    "resources:VCPU",
)


def is_concerned(flavor: Flavor, properties: Mapping[str, str]) -> bool:
    """Whether anything is said of cells, pages and pinning; quick, since most say nothing."""
    return any(key.startswith(_CONCERNED) for keys in (flavor.extra_specs, properties) for key in keys)


def wanted_topology(flavor: Flavor, properties: Mapping[str, str]) -> GuestTopology | None:
    """The cells that a guest of this flavor and image has; None: it is not for NUMA to decide.

    Raises Invalid for what makes no sense, or what the image may not say.
    """
    if not is_concerned(flavor, properties):
        return None
    wishes = Wishes(flavor, properties)
    cpus = processors(wishes)
    page_size = _page_size(wishes)
    _check_locked(wishes, page_size)
    nodes = _nodes(wishes)
    manual = _manual(wishes, nodes)
    if nodes is None:
        if not cpus.dedicated and page_size is None:
            return None
        nodes = 1
    shares = _assigned(wishes, nodes, manual) if manual else _even(flavor, nodes)
    return GuestTopology(
        cells=tuple(
            _cell(number, members, memory, cpus, page_size) for number, (members, memory) in enumerate(shares)
        ),
        emulator_threads=cpus.emulator,
        realtime_mask=cpus.realtime,
    )


def processor_classes(flavor: Flavor, properties: Mapping[str, str]) -> dict[str, int]:
    """What the guest's CPUs are in placement: amounts of VCPU and PCPU.  Raises Invalid."""
    if not is_concerned(flavor, properties):
        return {"VCPU": flavor.vcpus}
    return processors(Wishes(flavor, properties)).resources()


def _cell(
    number: int, members: frozenset[int], memory: int, cpus: Processors, page_size: str | None
) -> GuestCell:
    return GuestCell(
        id=number,
        shared=tuple(sorted(members - cpus.dedicated)),
        dedicated=tuple(sorted(members & cpus.dedicated)),
        memory_mib=memory,
        page_size=page_size,
        thread_policy=cpus.threads,
    )


def _nodes(wishes: Wishes) -> int | None:
    of_flavor, of_image = wishes.of_flavor("numa_nodes"), wishes.of_image("numa_nodes")
    if of_flavor is not None and of_image is not None:
        wishes.forbid_image("numa_nodes")
    text = of_flavor or of_image
    if text is None:
        return None
    if not re.fullmatch(r"\s*\+?\d{1,9}\s*", text, re.ASCII) or not 1 <= int(text) <= MOST_CELLS:
        raise Invalid(f"numa_nodes is '{text}': it must be a number from 1 to {MOST_CELLS}.")
    return int(text)


Manual = dict[str, dict[int, str]]


def _manual(wishes: Wishes, nodes: int | None) -> Manual:
    """What is said of single cells: by ``numa_cpus`` and ``numa_mem``, cell number -> text."""
    of_flavor = _numbered(wishes.specs, "hw:")
    of_image = _numbered(wishes.properties, "hw_")
    if of_image and (of_flavor or wishes.of_flavor("numa_nodes")):
        raise Invalid(
            f"The image's {', '.join(sorted(of_image))} are not allowed: the flavor has laid out its cells."
        )
    found = of_flavor or of_image
    if found and nodes is None:
        raise Invalid(f"{', '.join(sorted(found))} of single cells need numa_nodes, the number of cells.")
    beyond = [number for some in found.values() for number in some if nodes is not None and number >= nodes]
    if beyond:
        raise Invalid(f"There is no NUMA cell {max(beyond)}: numa_nodes is {nodes}.")
    return found


def _numbered(words: Mapping[str, str], prefix: str) -> Manual:
    found: Manual = {}
    for name in ("numa_cpus", "numa_mem"):
        for key, value in words.items():
            start, _, number = key.partition(".")
            if start == prefix + name and number.isascii() and number.isdecimal():
                found.setdefault(name, {})[int(number[:9])] = value
    return found


def _even(flavor: Flavor, nodes: int) -> list[tuple[frozenset[int], int]]:
    if flavor.vcpus % nodes or flavor.memory_mb % nodes:
        raise Invalid(
            f"{flavor.vcpus} CPUs and {flavor.memory_mb} MiB cannot be shared evenly among {nodes} NUMA "
            "cells: say what each has by numa_cpus.N and numa_mem.N."
        )
    each = flavor.vcpus // nodes
    return [
        (frozenset(range(number * each, (number + 1) * each)), flavor.memory_mb // nodes)
        for number in range(nodes)
    ]


def _assigned(wishes: Wishes, nodes: int, manual: Manual) -> list[tuple[frozenset[int], int]]:
    """What each cell was given by hand; all of the flavor, once."""
    flavor = wishes.flavor
    shares: list[tuple[frozenset[int], int]] = []
    free = frozenset(range(flavor.vcpus))
    for number in range(nodes):
        cpus, memory = (manual.get(name, {}).get(number) for name in ("numa_cpus", "numa_mem"))
        if cpus is None or memory is None:
            raise Invalid(f"NUMA cell {number} needs both numa_cpus.{number} and numa_mem.{number}.")
        shares.append((_cpus_of(number, cpus, flavor.vcpus, free), _memory_of(number, memory)))
        free -= shares[-1][0]
    if free:
        raise Invalid(f"The CPUs {format_cpus(free)} are in no NUMA cell.")
    total = sum(memory for _, memory in shares)
    if total != flavor.memory_mb:
        raise Invalid(f"The NUMA cells have {total} MiB of memory, and the flavor {flavor.memory_mb}.")
    return shares


def _cpus_of(number: int, text: str, count: int, free: frozenset[int]) -> frozenset[int]:
    try:
        found = parse_cpus(text)
    except ValueError as error:
        raise Invalid(f"numa_cpus.{number} '{text}' is not valid: {error}.") from error
    if not found:
        raise Invalid(f"numa_cpus.{number} '{text}' names no CPU.")
    if max(found) >= count:
        raise Invalid(f"numa_cpus.{number} names CPU {max(found)}, and the last one is {count - 1}.")
    if not found <= free:
        raise Invalid(f"The CPUs {format_cpus(found - free)} are in two NUMA cells.")
    return found


def _memory_of(number: int, text: str) -> int:
    if not re.fullmatch(r"\s*\+?\d{1,12}\s*", text, re.ASCII) or int(text) < 1:
        raise Invalid(f"numa_mem.{number} is '{text}': it must be a number of MiB.")
    return int(text)


def _page_size(wishes: Wishes) -> str | None:
    """A word, or a size in KiB; the image may choose where the flavor leaves a choice."""
    of_flavor, of_image = wishes.of_flavor("mem_page_size"), wishes.of_image("mem_page_size")
    if of_flavor is None:
        if of_image is not None:
            raise Invalid(
                f"The image's hw_mem_page_size '{of_image}' is not allowed: the flavor says nothing of it."
            )
        return None
    chosen = read_page_size(of_flavor)
    if of_image is None:
        return chosen
    if chosen not in (ANY, LARGE):
        wishes.forbid_image("mem_page_size")
    return read_page_size(of_image)


def read_page_size(text: str) -> str:
    """``small``, ``large``, ``any``, or a size in KiB of what has a unit or none.  Raises Invalid."""
    word = text.strip()
    if word in (SMALL, LARGE, ANY):
        return word
    found = _SIZE.fullmatch(word)
    if found is None or (found[2] and not found[3]):
        raise Invalid(
            f"The page size '{text}' is not valid: small, large, any, KiB as a number, or like 2MB."
        )
    number, unit, last = int(found[1]), found[2] or "", found[3]
    octets = number * _UNITS[unit] // (8 if last in ("b", "bit") else 1) if last else number << 10
    if octets < 1 << 10 or octets % (1 << 10):
        raise Invalid(f"The page size '{text}' is not valid: it is no whole number of KiB.")
    return str(octets >> 10)


def _check_locked(wishes: Wishes, page_size: str | None) -> None:
    if wishes.flag("locked_memory") and page_size is None:
        raise Invalid(
            "hw:locked_memory needs hw:mem_page_size: memory that is locked is of pages of a known size."
        )
