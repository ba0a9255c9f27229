"""Which processor guests see."""

from __future__ import annotations

import structlog

from kilonova.errors import Failed
from kilonova.virt.libvirt.capabilities import Machine
from kilonova.virt.libvirt.options import LibvirtOptions
from kilonova.virt.libvirt.xml.domain import Cpu

log = structlog.get_logger("kilonova.virt")


def choose_cpu(options: LibvirtOptions, machine: Machine, virt_type: str) -> Cpu:
    """As the settings say; by default the host's with KVM, and all that QEMU can emulate without.

    Raises Failed for a mode or model that this host does not have.
    """
    mode = options.cpu_mode or ("host-model" if virt_type == "kvm" else "maximum")
    if mode == "none":
        return Cpu()
    if virt_type == "qemu" and mode == "host-passthrough":
        mode = "maximum"  # the host's own processor cannot be emulated; this comes nearest
    if mode not in machine.cpu_modes:
        raise Failed(
            f"[libvirt]cpu_mode is {mode}, which this host does not support: "
            f"use one of {', '.join(sorted(machine.cpu_modes))}."
        )
    if mode != "custom":
        return Cpu(mode=mode)
    if not options.cpu_models:
        raise Failed("[libvirt]cpu_mode is custom, and [libvirt]cpu_models names no model.")
    for model in options.cpu_models:
        if model in machine.cpu_models:
            return Cpu(mode="custom", model=model)
    raise Failed(
        f"None of [libvirt]cpu_models ({', '.join(options.cpu_models)}) runs on this host; "
        f"these do: {', '.join(sorted(machine.cpu_models))}."
    )
