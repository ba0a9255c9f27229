"""Filters: whether one host can take a server.  Names are Nova's; each answers with the reason for a no."""

from __future__ import annotations

from collections.abc import Callable

from kilonova.scheduler.capabilities import capabilities
from kilonova.scheduler.request import HostState, ServerRequest

Filter = Callable[[ServerRequest, HostState], str | None]

UNITS = {"VCPU": "vCPUs", "MEMORY_MB": "MiB of memory", "DISK_GB": "GiB of disk"}

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64", "i386": "i686"}


def tried(request: ServerRequest, state: HostState) -> str | None:
    """RetryFilter: not where it has failed already."""
    reason = request.tried.get(state.host.host)
    return None if reason is None else f"it failed there: {reason}"


def requested(request: ServerRequest, state: HostState) -> str | None:
    """The host or node that the user named (2.74)."""
    if request.requested_host and request.requested_host != state.host.host:
        return f"the host '{request.requested_host}' was asked for"
    if request.requested_node and request.requested_node != state.host.hypervisor_hostname:
        return f"the node '{request.requested_node}' was asked for"
    return None


def compute(request: ServerRequest, state: HostState) -> str | None:
    """ComputeFilter: enabled and alive."""
    if state.host.disabled:
        return f"disabled ({state.host.disabled_reason or 'no reason given'})"
    if state.host.forced_down:
        return "forced down"
    return None if state.up else "its agent does not answer"


def availability_zone(request: ServerRequest, state: HostState) -> str | None:
    """AvailabilityZoneFilter."""
    wanted = request.availability_zone
    return None if wanted is None or wanted == state.zone else f"in zone '{state.zone}', not '{wanted}'"


def image_properties(request: ServerRequest, state: HostState) -> str | None:
    """ImagePropertiesFilter: the architecture and hypervisor type that the image asks for."""
    wanted = request.image_properties.get("hw_architecture") or request.image_properties.get("architecture")
    have = state.host.cpu_info.get("arch")
    if wanted and have and _ARCHITECTURES.get(wanted, wanted) != have:
        return f"its CPUs are {have}, the image is for {wanted}"
    wanted = request.image_properties.get("img_hv_type") or request.image_properties.get("hypervisor_type")
    have = state.host.hypervisor_type.lower()
    if wanted and wanted.lower() != have and not {wanted.lower(), have} <= {"kvm", "qemu"}:
        return f"its hypervisor is {have}, the image is for {wanted}"
    return None


def traits(request: ServerRequest, state: HostState) -> str | None:
    """Required and forbidden traits of the flavor and the image (``trait:NAME=required``)."""
    for source in (request.extra_specs, request.image_properties):
        for key, value in source.items():
            group, colon, name = key.partition(":")
            if not colon or not group.startswith("trait"):
                continue
            have = name in state.provider.traits
            if value == "required" and not have:
                return f"it lacks the trait {name}"
            if value == "forbidden" and have:
                return f"it has the forbidden trait {name}"
    return None


def capacity(request: ServerRequest, state: HostState) -> str | None:
    """What placement has free, class by class."""
    if not state.provider.inventories:
        return "placement has no inventory of it"
    for resource, amount in request.resources.items():
        unit = UNITS.get(resource, resource)
        inventory = state.provider.inventories.get(resource)
        if inventory is None:
            return f"it has no {unit}"
        if amount > inventory.max_unit:
            return f"{amount} {unit} wanted, one server may have {inventory.max_unit} at most"
        free = state.free(resource)
        if amount > free:
            return f"{amount} {unit} wanted, {max(free, 0)} free"
    return None


FILTERS: tuple[Filter, ...] = (
    tried,
    requested,
    compute,
    availability_zone,
    image_properties,
    traits,
    capabilities,
    capacity,
)

# zone:host:node is an administrator's order: only what is impossible stands against it.
FORCED: tuple[Filter, ...] = (tried, compute, capacity)
