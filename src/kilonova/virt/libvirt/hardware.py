"""Which hardware a guest gets: what its image and flavor ask for, as far as it makes sense.

Properties and extra specs are Nova's: ``hw_*`` of the image, ``hw:*`` of the flavor.  Where both may say
something, the flavor is stronger, as it is the operator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import msgspec

from kilonova.errors import Failed, HostFault
from kilonova.model.flavor import Flavor
from kilonova.virt.libvirt.capabilities import Machine
from kilonova.virt.libvirt.topology import Topology, choose_topology

DISK_BUSES = ("virtio", "scsi", "sata", "ide", "usb")
CDROM_BUSES = ("ide", "sata", "scsi", "usb", "virtio")
SCSI_MODELS = ("virtio-scsi", "lsilogic", "lsisas1068", "lsisas1078", "buslogic")
VIF_MODELS = ("virtio", "e1000", "e1000e", "rtl8139", "ne2k_pci", "pcnet", "vmxnet3")
VIDEO_MODELS = ("vga", "cirrus", "vmvga", "qxl", "virtio", "bochs", "none")
MOST_SERIAL_PORTS = 4
WATCHDOG_ACTIONS = ("disabled", "none", "pause", "poweroff", "reset")
POINTERS = ("usbtablet", "ps2mouse")
_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})
_FALSE = frozenset({"0", "f", "false", "off", "n", "no"})

# What this driver does not do yet: to start the guest without it would break a promise.
_NOT_YET: tuple[tuple[str, str, frozenset[str], str], ...] = (
    ("hw:mem_encryption", "hw_mem_encryption", _FALSE, "encrypted memory"),
    ("hw:tpm_version", "hw_tpm_version", frozenset(), "a TPM"),
    ("hw:viommu_model", "hw_viommu_model", frozenset({"none"}), "an IOMMU"),
    ("accel:device_profile", "", frozenset(), "an accelerator"),
)


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    machine: Machine
    topology: Topology
    disk_bus: str = "virtio"
    cdrom_bus: str = "ide"
    scsi_model: str = "virtio-scsi"
    vif_model: str = "virtio"
    video_model: str = "vga"
    video_ram_mib: int | None = None
    rng: bool = True
    rng_rate: tuple[int, int] | None = None  # bytes, milliseconds
    watchdog: str | None = None
    agent: bool = False
    pointer: str = "usbtablet"
    uefi: bool = False
    secure_boot: bool = False
    windows: bool = False
    hide_hypervisor: bool = False
    pmu: bool | None = None
    serial_ports: int = 1
    boot_menu: bool = False


class _Wishes:
    """What is asked for, by names without prefix: the flavor's ``hw:x`` or the image's ``hw_x``."""

    def __init__(self, properties: Mapping[str, str], flavor: Flavor) -> None:
        self._properties = properties
        self._specs = flavor.extra_specs

    def image(self, name: str) -> str | None:
        value = self._properties.get(name)
        return None if value in (None, "") else str(value).strip()

    def either(self, name: str) -> str | None:
        value = self._specs.get(f"hw:{name}")
        return value.strip() if value else self.image(f"hw_{name}")

    def flag(self, name: str) -> bool | None:
        return _flag(f"hw:{name}", self.either(name))

    def image_flag(self, name: str) -> bool | None:
        return _flag(name, self.image(name))

    def number(self, name: str) -> int | None:
        value = self.either(name)
        if value is None:
            return None
        if not value.isascii() or not value.isdigit() or int(value) < 1:
            _reject(f"hw_{name}", value, "a whole number above 0")
        return int(value)

    def one_of(self, name: str, words: tuple[str, ...]) -> str | None:
        value = self.image(name)
        if value is not None and value not in words:
            _reject(name, value, f"one of {', '.join(words)}")
        return value


def machine_type(properties: Mapping[str, str], arch: str, default: str) -> str:
    """The machine type to ask the host about.  Raises Failed or HostFault for another architecture."""
    asked = properties.get("hw_architecture") or properties.get("architecture")
    known = {"amd64": "x86_64", "x86": "x86_64", "arm64": "aarch64"}
    if asked and known.get(asked.lower(), asked.lower()) != arch:
        raise HostFault(f"The image is for {asked}, and this host has {arch}.")
    return properties.get("hw_machine_type") or default


def choose(properties: Mapping[str, str], flavor: Flavor, machine: Machine, *, vnc: bool) -> Hardware:
    """Raises Failed for what makes no sense on any host, HostFault for what this one does not have."""
    wishes = _Wishes(properties, flavor)
    _refuse_what_is_missing(properties, flavor)
    if flavor.vcpus > machine.max_vcpus:
        raise HostFault(
            f"The flavor has {flavor.vcpus} processors, and {machine.name} takes {machine.max_vcpus}."
        )
    disk_bus = wishes.one_of("hw_disk_bus", DISK_BUSES) or "virtio"
    cdrom_bus = wishes.one_of("hw_cdrom_bus", CDROM_BUSES) or ("scsi" if machine.is_q35 else "ide")
    for bus in (disk_bus, cdrom_bus):
        _need(bus, machine.disk_buses, "the disk bus", machine)
        if bus == "ide" and machine.is_q35:
            raise Failed("There is no IDE on the machine type q35: use virtio, scsi or sata.")
    video = wishes.one_of("hw_video_model", VIDEO_MODELS) or "vga"
    _need(video, machine.video_models, "the video model", machine)
    uefi = _firmware(wishes, machine)
    return Hardware(
        machine=machine,
        topology=choose_topology(
            flavor.vcpus,
            {part: wishes.number(f"cpu_{part}") for part in ("sockets", "cores", "threads")},
            {part: _most(wishes, part) for part in ("sockets", "cores", "threads")},
        ),
        disk_bus=disk_bus,
        cdrom_bus=cdrom_bus,
        scsi_model=wishes.one_of("hw_scsi_model", SCSI_MODELS) or "virtio-scsi",
        vif_model=wishes.one_of("hw_vif_model", VIF_MODELS) or "virtio",
        video_model=video if vnc else "none",
        video_ram_mib=_video_ram(wishes, flavor),
        rng=_flag("hw_rng:allowed", flavor.extra_specs.get("hw_rng:allowed")) is not False,
        rng_rate=_rng_rate(wishes, flavor),
        watchdog=_watchdog(wishes),
        agent=bool(wishes.image_flag("hw_qemu_guest_agent")),
        pointer=_pointer(wishes),
        uefi=uefi,
        secure_boot=uefi and (wishes.image("os_secure_boot") or "") == "required",
        windows=(wishes.image("os_type") or "").lower() == "windows",
        hide_hypervisor=bool(
            wishes.image_flag("img_hide_hypervisor_id") or wishes.flag("hide_hypervisor_id")
        ),
        pmu=wishes.flag("pmu"),
        boot_menu=bool(wishes.flag("boot_menu")),
        serial_ports=_serial_ports(wishes),
    )


def _refuse_what_is_missing(properties: Mapping[str, str], flavor: Flavor) -> None:
    for spec, prop, harmless, what in _NOT_YET:
        for name, value in ((spec, flavor.extra_specs.get(spec)), (prop, properties.get(prop))):
            if value and value.strip().lower() not in harmless:
                raise HostFault(f"{name} = {value} asks for {what}, which this host does not offer.")


def _need(word: str, known: frozenset[str], what: str, machine: Machine) -> None:
    if word not in known:
        raise HostFault(f"This host's QEMU does not have {what} '{word}' for {machine.name}.")


def _firmware(wishes: _Wishes, machine: Machine) -> bool:
    asked = wishes.one_of("hw_firmware_type", ("bios", "uefi"))
    secure = wishes.one_of("os_secure_boot", ("required", "optional", "disabled"))
    if secure == "required" and asked != "uefi":
        raise Failed("os_secure_boot = required needs hw_firmware_type = uefi.")
    if asked == "uefi":
        _need("efi", machine.firmware, "the firmware", machine)
    return asked == "uefi"


def _video_ram(wishes: _Wishes, flavor: Flavor) -> int | None:
    """Raises Failed above what the flavor allows, as Nova does; a flavor without a limit allows none."""
    text = wishes.image("hw_video_ram")
    if text is None:
        return None
    most = flavor.extra_specs.get("hw_video:ram_max_mb", "0")
    if not text.isdigit() or not most.isdigit():
        _reject("hw_video_ram", text, "a whole number of MiB")
    if int(text) > int(most):
        raise Failed(f"The image asks for {text} MiB of video memory, and the flavor allows {most}.")
    return int(text) or None


def _rng_rate(wishes: _Wishes, flavor: Flavor) -> tuple[int, int] | None:
    wishes.one_of("hw_rng_model", ("virtio",))
    amount = flavor.extra_specs.get("hw_rng:rate_bytes")
    if not amount:
        return None
    period = flavor.extra_specs.get("hw_rng:rate_period", "1000")
    if not amount.isdigit() or not period.isdigit():
        _reject("hw_rng:rate_bytes", amount, "a whole number of bytes")
    return int(amount), int(period)


def _watchdog(wishes: _Wishes) -> str | None:
    action = wishes.either("watchdog_action")
    if action is None or action.lower() == "disabled":
        return None
    if action.lower() not in WATCHDOG_ACTIONS:
        _reject("hw_watchdog_action", action, f"one of {', '.join(WATCHDOG_ACTIONS)}")
    return action.lower()


def _serial_ports(wishes: _Wishes) -> int:
    count = wishes.number("serial_port_count") or 1
    if count > MOST_SERIAL_PORTS:
        raise Failed(f"The image or flavor asks for {count} serial ports; a PC has {MOST_SERIAL_PORTS}.")
    return count


def _pointer(wishes: _Wishes) -> str:
    return wishes.one_of("hw_pointer_model", POINTERS) or "usbtablet"


def _most(wishes: _Wishes, part: str) -> int | None:
    """Nova's code and its documentation spell the limit differently: both are taken."""
    return wishes.number(f"cpu_max_{part}") or wishes.number(f"max_cpu_{part}")


def _flag(name: str, value: str | None) -> bool | None:
    if value is None or value == "":
        return None
    word = value.strip().lower()
    if word not in _TRUE and word not in _FALSE:
        _reject(name, value, "true or false")
    return word in _TRUE


def _reject(name: str, value: str, wanted: str) -> NoReturn:
    raise Failed(f"{name} is '{value}' in the image or flavor; it has to be {wanted}.")
