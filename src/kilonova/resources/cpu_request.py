"""The processors that a flavor and an image ask for: floating or pinned, their threads, the emulator's.

The words and what excludes what are Nova's (hw:cpu_policy and its kin, admin guide on CPU topologies).
"""

from __future__ import annotations

import msgspec

from kilonova.errors import Invalid
from kilonova.model.cpus import format_cpus, parse_cpus
from kilonova.resources.wishes import Wishes

SHARED, DEDICATED, MIXED = "shared", "dedicated", "mixed"
PREFER, ISOLATE, REQUIRE = "prefer", "isolate", "require"
SHARE = "share"  # emulator threads on the host's shared CPUs; ISOLATE: on a CPU of their own


class Processors(msgspec.Struct, frozen=True, kw_only=True):
    """A guest's CPUs, numbered from 0: those that are pinned, and how."""

    count: int
    dedicated: frozenset[int] = frozenset()
    threads: str | None = None  # prefer, isolate, require
    emulator: str | None = None  # share, isolate
    realtime: str | None = None  # the real-time ones, as a CPU set

    @property
    def shared(self) -> int:
        return self.count - len(self.dedicated)

    def resources(self) -> dict[str, int]:
        """What they are in placement: VCPU for floating CPUs, PCPU for pinned ones and the emulator's own."""
        pinned = len(self.dedicated) + (self.emulator == ISOLATE)
        return {name: amount for name, amount in (("VCPU", self.shared), ("PCPU", pinned)) if amount}


def processors(wishes: Wishes) -> Processors:
    """Raises Invalid for what makes no sense or is not allowed to the image."""
    emulator = _emulator(wishes)
    policy = _policy(wishes, emulator)
    threads = _threads(wishes)
    if policy == SHARED:
        _check_shared(wishes, threads, emulator)
        return Processors(count=wishes.flavor.vcpus, emulator=emulator)
    count = wishes.flavor.vcpus
    everything = frozenset(range(count))
    realtime = _realtime(wishes, everything, emulator)
    dedicated = everything if policy == DEDICATED else _mixed(wishes, everything, realtime)
    if policy == DEDICATED and wishes.of_flavor("cpu_dedicated_mask"):
        raise Invalid("hw:cpu_dedicated_mask needs hw:cpu_policy 'mixed'.")
    return Processors(
        count=count,
        dedicated=dedicated,
        threads=threads,
        emulator=emulator,
        realtime=None if realtime is None else format_cpus(realtime),
    )


def _policy(wishes: Wishes, emulator: str | None) -> str:
    """The image may make more of a flavor that has decided nothing, and no more than that."""
    of_flavor, of_image = wishes.one_of("cpu_policy", (DEDICATED, SHARED, MIXED))
    explicit = _explicit(wishes, emulator)
    if explicit and (of_flavor or of_image):
        raise Invalid(f"A flavor with {explicit} cannot be used with a CPU policy: use one or the other.")
    if explicit == "resources:PCPU":
        return DEDICATED
    if of_flavor == DEDICATED:
        return DEDICATED
    if of_flavor is None:
        return of_image or SHARED
    if of_image is not None and of_image != of_flavor and of_image != SHARED:
        wishes.forbid_image("cpu_policy")
    return of_flavor


def _explicit(wishes: Wishes, emulator: str | None) -> str | None:
    """The extra spec by which a flavor asks placement for processors itself."""
    asked = {
        name: int(wishes.specs[f"resources:{name}"])
        for name in ("VCPU", "PCPU")
        if wishes.specs.get(f"resources:{name}", "").isdecimal()
    }
    if asked.get("VCPU") and asked.get("PCPU"):
        raise Invalid(
            "A flavor cannot have both resources:VCPU and resources:PCPU: use hw:cpu_policy 'mixed'."
        )
    if asked.get("PCPU"):
        needed = wishes.flavor.vcpus + (emulator == ISOLATE)
        if asked["PCPU"] != needed:
            raise Invalid(f"resources:PCPU is {asked['PCPU']} where the flavor's CPUs need {needed}.")
        return "resources:PCPU"
    return "resources:VCPU" if asked.get("VCPU") else None


def _threads(wishes: Wishes) -> str | None:
    of_flavor, of_image = wishes.one_of("cpu_thread_policy", (PREFER, ISOLATE, REQUIRE))
    if of_flavor in (None, PREFER):
        return of_image or of_flavor
    if of_image not in (None, of_flavor):
        wishes.forbid_image("cpu_thread_policy")
    return of_flavor


def _emulator(wishes: Wishes) -> str | None:
    of_flavor, of_image = wishes.one_of("emulator_threads_policy", (SHARE, ISOLATE))
    if of_flavor and of_image and of_flavor != of_image:
        wishes.forbid_image("emulator_threads_policy")
    return of_flavor or of_image


def _check_shared(wishes: Wishes, threads: str | None, emulator: str | None) -> None:
    """What has a meaning for pinned CPUs only."""
    if threads is not None:
        raise Invalid(f"The CPU thread policy '{threads}' needs the CPU policy 'dedicated' or 'mixed'.")
    if emulator == ISOLATE:
        raise Invalid("Isolated emulator threads need the CPU policy 'dedicated' or 'mixed'.")
    if wishes.flag("cpu_realtime", image=False):
        raise Invalid("Real-time CPUs (hw:cpu_realtime) need the CPU policy 'dedicated' or 'mixed'.")
    if wishes.of_flavor("cpu_dedicated_mask"):
        raise Invalid("hw:cpu_dedicated_mask needs hw:cpu_policy 'mixed'.")


def _mask(name: str, text: str, everything: frozenset[int]) -> frozenset[int]:
    """A set of CPUs; one that begins with an exception is all but that.  Raises Invalid."""
    first = text.strip()
    if first.startswith("^"):
        first = f"0-{max(everything)},{first}"
    try:
        found = parse_cpus(first)
    except ValueError as error:
        raise Invalid(f"{name} '{text}' is not valid: {error}.") from error
    if not found <= everything:
        raise Invalid(
            f"{name} '{text}' names CPUs that the flavor does not have: {format_cpus(found - everything)}."
        )
    return found


def _realtime(wishes: Wishes, everything: frozenset[int], emulator: str | None) -> frozenset[int] | None:
    """The real-time CPUs; None: there are none."""
    if not wishes.flag("cpu_realtime", image=False):
        return None
    mask = wishes.of_image("cpu_realtime_mask") or wishes.of_flavor("cpu_realtime_mask")
    if mask is None and emulator is None:
        raise Invalid(
            "hw:cpu_realtime needs hw:cpu_realtime_mask to leave a CPU that is not real-time, or an emulator "
            "threads policy."
        )
    found = everything if mask is None else _mask("hw:cpu_realtime_mask", mask, everything)
    if not found:
        raise Invalid(f"hw:cpu_realtime_mask '{mask}' leaves no real-time CPU.")
    if found == everything and emulator is None:
        raise Invalid(
            f"hw:cpu_realtime_mask '{mask}' leaves no CPU for the emulator: leave one out, or set an "
            "emulator threads policy."
        )
    return found


def _mixed(wishes: Wishes, everything: frozenset[int], realtime: frozenset[int] | None) -> frozenset[int]:
    """The dedicated CPUs of a mixed guest, by the one mask or the other."""
    mask = wishes.of_flavor("cpu_dedicated_mask")
    if (mask is None) == (realtime is None):
        raise Invalid(
            "The CPU policy 'mixed' needs either hw:cpu_dedicated_mask or hw:cpu_realtime with "
            "hw:cpu_realtime_mask to tell which CPUs are dedicated, and not both."
        )
    if mask is None:
        assert realtime is not None
        found = realtime
    else:
        found = _mask("hw:cpu_dedicated_mask", mask, everything)
    if not found or found == everything:
        raise Invalid("A guest of the CPU policy 'mixed' has at least one dedicated and one shared CPU.")
    return found
