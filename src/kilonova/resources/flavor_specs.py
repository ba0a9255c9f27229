"""What flavors may be: who may use one, and which extra specs are understood.

Namespaces and their keys are Nova's; from microversion 2.86 on a key that a known namespace does not have,
or a value that the key does not take, is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from kilonova.errors import Invalid
from kilonova.model.flavor import Flavor

KEY = re.compile(r"[a-zA-Z0-9_.\- :]{1,255}")
MAX_VALUE = 255

Check = Callable[[str], str | None]
"""Gives what is wrong with a value, or None."""

_FLAGS = frozenset({"1", "t", "true", "on", "y", "yes", "0", "f", "false", "off", "n", "no"})
_CPUS = r"\^?\d+(-\d+)?(,\^?\d+(-\d+)?)*"
_GROUP = r"([a-zA-Z0-9_-]{1,64})?"


def _words(text: str) -> list[str]:
    return text.split()


def _any(value: str) -> str | None:
    return None


def _flag(value: str) -> str | None:
    return None if value.strip().lower() in _FLAGS else "is not a valid boolean-like value"


def _number(least: int | None = None) -> Check:
    def check(value: str) -> str | None:
        if not re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value, re.ASCII):
            return "is not a valid integer value"
        if least is not None and int(value) < least:
            return f"is less than the min value of '{least}'"
        return None

    return check


def _one_of(*words: str) -> Check:
    return lambda value: None if value in words else f"is not one of: {', '.join(words)}"


def _form(pattern: str) -> Check:
    form = re.compile(pattern, re.ASCII)
    return lambda value: None if form.fullmatch(value) else f"is not of the format '{pattern}'"


_count, _positive, _integer = _number(0), _number(1), _number()

_HW: dict[str, Check] = {
    "hw:boot_menu": _flag,
    "hw:cpu_cores": _positive,
    "hw:cpu_dedicated_mask": _form(_CPUS),
    "hw:cpu_policy": _one_of("dedicated", "shared", "mixed"),
    "hw:cpu_realtime": _flag,
    "hw:cpu_realtime_mask": _form(_CPUS),
    "hw:cpu_sockets": _positive,
    "hw:cpu_thread_policy": _one_of("prefer", "isolate", "require"),
    "hw:cpu_threads": _positive,
    "hw:emulator_threads_policy": _one_of("isolate", "share"),
    "hw:ephemeral_encryption": _flag,
    "hw:ephemeral_encryption_format": _one_of("luks"),
    "hw:hide_hypervisor_id": _flag,
    "hw:locked_memory": _flag,
    "hw:max_cpu_cores": _positive,
    "hw:max_cpu_sockets": _positive,
    "hw:max_cpu_threads": _positive,
    "hw:maxphysaddr_bits": _count,
    "hw:maxphysaddr_mode": _one_of("passthrough", "emulate"),
    "hw:mem_encryption": _flag,
    "hw:mem_encryption_model": _one_of("amd-sev", "amd-sev-es"),
    "hw:mem_page_size": _form(r"large|small|any|\d+([kKMGT]i?)?(b|bit|B)?"),
    "hw:numa_nodes": _positive,
    "hw:pci_numa_affinity_policy": _one_of("required", "preferred", "legacy", "socket"),
    "hw:pmem": _form(r"[a-zA-Z0-9_]+(,[a-zA-Z0-9_]+)*,?"),
    "hw:pmu": _flag,
    "hw:redirected_usb_ports": _count,
    "hw:serial_port_count": _count,
    "hw:sound_model": _one_of("sb16", "es1370", "pcspk", "ac97", "ich6", "ich9", "usb", "virtio"),
    "hw:tpm_model": _one_of("tpm-tis", "tpm-crb"),
    "hw:tpm_secret_security": _one_of("user", "host", "deployment"),
    "hw:tpm_version": _one_of("1.2", "2.0"),
    "hw:usb_model": _any,
    "hw:vif_multiqueue_enabled": _flag,
    "hw:viommu_model": _one_of("intel", "smmuv3", "virtio", "auto"),
    "hw:virtio_packed_ring": _flag,
    "hw:watchdog_action": _one_of("none", "pause", "poweroff", "reset", "disabled"),
}
_OTHERS: dict[str, Check] = {
    "accel:device_profile": _any,
    "group_policy": _one_of("isolate", "none"),
    "hide_hypervisor_id": _flag,
    "hw_rng:allowed": _flag,
    "hw_rng:rate_bytes": _count,
    "hw_rng:rate_period": _count,
    "hw_video:ram_max_mb": _count,
    "os:secure_boot": _one_of("disabled", "required"),
    "pci_passthrough:alias": _form(r"[^:]+:\d+(\s*,\s*[^:]+:\d+)*"),
}
_QUOTA: dict[str, Check] = {
    **{f"quota:cpu_{name}": _count for name in ("shares", "period", "quota")},
    **{
        f"quota:disk_{way}_{unit}_sec{burst}": _count
        for way in ("read", "write", "total")
        for unit in ("bytes", "iops")
        for burst in ("", "_max", "_max_length")
    },
    **{
        f"quota:vif_{way}_{kind}": _count
        for way in ("inbound", "outbound")
        for kind in ("average", "peak", "burst")
    },
    **{
        f"quota:{what}_{kind}": _any if kind == "shares_level" else _integer
        for what in ("cpu", "memory", "disk_io", "vif")
        for kind in ("limit", "reservation", "shares_level", "shares_share")
    },
}
_HOST_FACTS = _words("""
    aggregates cell_uuid cpu_allocation_ratio current_workload disk_allocation_ratio disk_available_least
    disk_mb_used failed_builds free_disk_gb free_disk_mb free_ram_mb host host_ip hypervisor_hostname
    hypervisor_type hypervisor_version id local_gb local_gb_used mapped memory_mb memory_mb_used num_instances
    num_io_ops ram_allocation_ratio running_vms service_id total_usable_disk_gb total_usable_ram_mb updated
    uuid vcpus vcpus_total vcpus_used
""")
_HOST_RECORDS = _words("""
    cpu_info instances limits metrics nodename numa_topology pci_device_pools pci_stats stats
    supported_hv_specs supported_instances
""")
_CLASSES = _words("""
    VCPU MEMORY_MB DISK_GB PCI_DEVICE SRIOV_NET_VF NUMA_SOCKET NUMA_CORE NUMA_THREAD NUMA_MEMORY_MB
    IPV4_ADDRESS VGPU VGPU_DISPLAY_HEAD NET_BW_EGR_KILOBIT_PER_SEC NET_BW_IGR_KILOBIT_PER_SEC PCPU
    MEM_ENCRYPTION_CONTEXT FPGA PGPU NET_PACKET_RATE_KILOPACKET_PER_SEC
    NET_PACKET_RATE_EGR_KILOPACKET_PER_SEC NET_PACKET_RATE_IGR_KILOPACKET_PER_SEC
""")

SPECS: dict[str, Check] = {
    **_HW,
    **_OTHERS,
    **_QUOTA,
    **{f"capabilities:{name}": _any for name in _HOST_FACTS},
}
"""Key -> the check of its value."""

PATTERNS: tuple[tuple[re.Pattern[str], Check], ...] = tuple(
    (re.compile(pattern, re.ASCII), check)
    for pattern, check in (
        (r"hw:numa_cpus\.\d+", _form(_CPUS)),
        (r"hw:numa_mem\.\d+", _positive),
        (rf"resources{_GROUP}:({'|'.join(_CLASSES)}|CUSTOM_[A-Z0-9_]+)", _integer),
        (rf"trait{_GROUP}:[A-Z][A-Z0-9_]+", _one_of("required", "forbidden")),
        (rf"capabilities:({'|'.join(_HOST_RECORDS)})(:\w+)*", _any),
        (r"aggregate_instance_extra_specs:.+", _any),
    )
)
"""Keys with a part that varies."""

NAMESPACES = re.compile(
    rf"accel|aggregate_instance_extra_specs|capabilities|hw|hw_rng|hw_video|os|pci_passthrough|quota"
    rf"|resources{_GROUP}|trait{_GROUP}",
    re.ASCII,
)


def may_use(flavor: Flavor, project_id: str | None, is_admin: bool) -> bool:
    """Whether a flavor exists for this caller: public ones do, and private ones of his project."""
    return is_admin or flavor.is_public or project_id in flavor.projects


def check_key(key: str) -> None:
    """Raises Invalid for a key that no extra spec may have."""
    if not KEY.fullmatch(key):
        raise Invalid(
            f"Key Names can only contain alphanumeric characters, periods, dashes, underscores, colons and "
            f"spaces, and are 1 to 255 long: '{key[:300]}' is not such a name."
        )


def value_text(key: str, value: str | float) -> str:
    """The value as it is stored: numbers may be sent, and are text from then on.  Raises Invalid."""
    if isinstance(value, float) and not math.isfinite(value):
        raise Invalid(f"Invalid input for field/attribute {key}: {value} is not a number.")
    text = str(value)
    if len(text) > MAX_VALUE:
        raise Invalid(f"Invalid input for field/attribute {key}: it is longer than {MAX_VALUE} characters.")
    return text


def check_spec(key: str, value: str) -> None:
    """Raises Invalid for a key or value that a known namespace does not have (2.86)."""
    check = SPECS.get(key)
    if check is None:
        check = next((one for pattern, one in PATTERNS if pattern.fullmatch(key)), None)
    if check is None:
        namespace, colon, _ = key.partition(":")
        if colon and NAMESPACES.fullmatch(namespace):
            raise Invalid(f"Validation failed; extra spec '{key}' does not appear to be a valid extra spec.")
        return
    wrong = check(value)
    if wrong is not None:
        raise Invalid(f"Validation failed; '{value}' {wrong}.")


_LEGACY: tuple[tuple[str, str, Callable[[str], object]], ...] = (
    ("id", "id", int),
    ("name", "name", str),
    ("memory_mb", "memory_mb", int),
    ("vcpus", "vcpus", int),
    ("root_gb", "root_gb", int),
    ("ephemeral_gb", "ephemeral_gb", int),
    ("flavorid", "flavorid", str),
    ("swap", "swap_mb", int),
    ("rxtx_factor", "rxtx_factor", float),
    ("vcpu_weight", "", str),
)
_LEGACY_SPECS = ("hw:numa_cpus.", "hw:numa_mem.")


def to_metadata(flavor: Flavor, prefix: str = "") -> dict[str, str]:
    """A flavor in the form in which old releases kept it in a server's system metadata."""
    start = f"{prefix}instance_type_"
    kept = {f"{start}{name}": str(getattr(flavor, ours)) if ours else "0" for name, ours, _ in _LEGACY}
    for key, value in flavor.extra_specs.items():
        if key.startswith(_LEGACY_SPECS):
            kept[f"{prefix}instance_type_extra_{key}"] = value
    return kept


def from_metadata(metadata: Mapping[str, str], prefix: str = "") -> Flavor | None:
    """The reverse of ``to_metadata``; None when there is no flavor in it."""
    start = f"{prefix}instance_type_"
    found = {
        ours: read(metadata[start + name])
        for name, ours, read in _LEGACY
        if ours and start + name in metadata
    }
    if not found:
        return None
    extra = f"{start}extra_"
    specs = {key.removeprefix(extra): value for key, value in metadata.items() if key.startswith(extra)}
    return Flavor(**found, extra_specs=specs)  # type: ignore[arg-type]
