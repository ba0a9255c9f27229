"""What libvirt and QEMU can do on this host, from their own descriptions."""

from __future__ import annotations

import asyncio
import re
import sys
import xml.etree.ElementTree as ET
from typing import Any

import msgspec
import structlog

from kilonova.errors import Failed, HostFault
from kilonova.virt.libvirt.connection import Connection
from kilonova.virt.libvirt.volumes import QemuUser

log = structlog.get_logger("kilonova.virt")

PROBE_TIMEOUT = 10.0  # seconds; a KVM that works answers in a few milliseconds


class HostCpu(msgspec.Struct, frozen=True, kw_only=True):
    arch: str
    model: str = ""
    vendor: str = ""
    features: tuple[str, ...] = ()
    topology: dict[str, int] = {}


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What guests of one machine type may have here; sets hold libvirt's words."""

    name: str  # as libvirt resolved it, e.g. pc-i440fx-7.2
    arch: str
    max_vcpus: int
    cpu_modes: frozenset[str]
    cpu_models: tuple[str, ...]  # those that run here
    cpu: str  # the host's processor as a guest can have it, as XML; empty if libvirt does not say
    disk_buses: frozenset[str]
    video_models: frozenset[str]
    firmware: frozenset[str]  # what <os firmware=...> takes

    @property
    def is_q35(self) -> bool:
        return "q35" in self.name


class Capabilities:
    """Asked once a machine type, and again after libvirtd has restarted (QEMU may be a new one)."""

    def __init__(self, connection: Connection, virt_type: str) -> None:
        self._connection = connection
        self._wanted = virt_type
        self._machines: dict[str, Machine] = {}
        self.virt_type = ""  # kvm or qemu, once it is open
        self.cpu = HostCpu(arch="")
        self.machine_types: frozenset[str] = frozenset()
        self.qemu_user: QemuUser | None = None  # None: libvirt does not say

    async def open(self) -> None:
        """Raises Failed when KVM is demanded and does not work."""
        root = ET.fromstring(await self._connection.call(lambda link: link.getCapabilities()))
        self.cpu = _host_cpu(root)
        domains = {
            domain.get("type", "") for domain in root.iterfind(f"guest/arch[@name='{self.cpu.arch}']/domain")
        }
        self.machine_types = frozenset(
            name
            for machine in root.iterfind(f"guest/arch[@name='{self.cpu.arch}']/machine")
            for name in (machine.text or "", machine.get("canonical", ""))
            if name
        )
        self.virt_type = await self._choose(domains)
        self.qemu_user = _qemu_user(root, self.virt_type)

    async def _choose(self, domains: set[str]) -> str:
        if self._wanted == "qemu":
            return "qemu"
        wrong = await kvm_fault() if "kvm" in domains else "libvirt does not offer it"
        if not wrong:
            return "kvm"
        if self._wanted == "kvm":
            raise Failed(
                f"[libvirt]virt_type is kvm, and KVM does not work on this host: {wrong}. "
                "Enable virtualisation in the firmware, or set virt_type to auto or qemu."
            )
        log.warning("KVM does not work: guests are emulated, which is slow", reason=wrong)
        return "qemu"

    def forget(self) -> None:
        self._machines.clear()

    async def machine(self, name: str) -> Machine:
        """Raises HostFault for a machine type that is not known here."""
        known = self._machines.get(name)
        if known is None:
            if name not in self.machine_types:
                raise HostFault(f"The machine type '{name}' is not known to QEMU on this host.")
            text = await self._connection.call(
                lambda link: link.getDomainCapabilities(None, self.cpu.arch, name, self.virt_type, 0)
            )
            known = self._machines[name] = read_machine(text)
        return known

    async def guest_features(self, machine: Machine) -> frozenset[str]:
        """All features of the processor that a guest of the host's model gets, by libvirt's names."""
        return await self._expanded(machine, machine.cpu) if machine.cpu else frozenset()

    async def features_of(self, machine: Machine, cpu: ET.Element) -> frozenset[str]:
        """All features of a guest's processor, as its ``<cpu>`` with a model says."""
        plain = ET.Element("cpu")
        ET.SubElement(plain, "arch").text = machine.arch
        ET.SubElement(plain, "model").text = cpu.findtext("model", "")
        policies: dict[str, set[str]] = {}
        for feature in cpu.iterfind("feature"):
            policies.setdefault(feature.get("policy", "require"), set()).add(feature.get("name", ""))
        wanted = policies.get("require", set()) | policies.get("force", set())
        for name in sorted(wanted):
            ET.SubElement(plain, "feature", {"name": name})
        found = await self._expanded(machine, ET.tostring(plain, encoding="unicode"))
        return (found | wanted) - policies.get("disable", set()) - policies.get("forbid", set())

    async def _expanded(self, machine: Machine, cpu: str) -> frozenset[str]:
        libvirt = self._connection.libvirt

        def work(link: Any) -> str:
            flags = libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
            wanted = (None, machine.arch, machine.name, self.virt_type, [cpu], flags)
            text: str = link.baselineHypervisorCPU(*wanted)
            return text

        root = ET.fromstring(await self._connection.call(work))
        features = [each for each in root.iterfind("feature") if each.get("policy") == "require"]
        return frozenset(each.get("name", "") for each in features)


async def kvm_fault() -> str:
    """Why KVM does not work here; empty if it does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "kilonova.virt.libvirt.kvm_probe",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            _, err = await process.communicate()
    except TimeoutError:
        return f"a tiny guest did not end within {PROBE_TIMEOUT:g} seconds"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == 0:
        return ""
    return err.decode(errors="replace").strip() or f"the probe ended with code {process.returncode}"


def _qemu_user(root: ET.Element, virt_type: str) -> QemuUser | None:
    for model in root.iterfind("host/secmodel[model='dac']"):
        label = model.findtext(f"baselabel[@type='{virt_type}']", "")
        if found := re.fullmatch(r"\+(\d+):\+(\d+)", label):
            return QemuUser(int(found[1]), int(found[2]))
    return None


def _host_cpu(root: ET.Element) -> HostCpu:
    cpu = root.find("host/cpu")
    if cpu is None:
        raise Failed("libvirt does not describe this host's processor.")
    topology = cpu.find("topology")
    cells = root.findall("host/topology/cells/cell")
    sizes = {} if topology is None else {key: int(value) for key, value in topology.attrib.items()}
    return HostCpu(
        arch=cpu.findtext("arch", ""),
        model=cpu.findtext("model", ""),
        vendor=cpu.findtext("vendor", ""),
        features=tuple(sorted(feature.get("name", "") for feature in cpu.iterfind("feature"))),
        topology={
            "cells": max(1, len(cells)),
            **{key: sizes[key] for key in ("sockets", "cores", "threads") if key in sizes},
        },
    )


def read_machine(text: str) -> Machine:
    """What libvirt's domain capabilities say."""
    root = ET.fromstring(text)  # libvirt's own words
    modes = root.findall("cpu/mode")
    vcpu = root.find("vcpu")
    return Machine(
        name=root.findtext("machine", ""),
        arch=root.findtext("arch", ""),
        max_vcpus=int(vcpu.get("max", "1")) if vcpu is not None else 1,
        cpu_modes=frozenset(mode.get("name", "") for mode in modes if mode.get("supported") == "yes"),
        cpu_models=tuple(
            model.text or ""
            for model in root.iterfind("cpu/mode[@name='custom']/model")
            if model.get("usable") != "no"
        ),
        cpu=_as_cpu(root),
        disk_buses=_enum(root, "devices/disk", "bus"),
        video_models=_enum(root, "devices/video", "modelType"),
        firmware=_enum(root, "os", "firmware"),
    )


def _as_cpu(root: ET.Element) -> str:
    """The host model as a processor of its own, which libvirt can tell the features of."""
    mode = root.find("cpu/mode[@name='host-model']")
    if mode is None or mode.get("supported") != "yes":
        return ""
    cpu = ET.Element("cpu")
    ET.SubElement(cpu, "arch").text = root.findtext("arch", "")
    cpu.extend(child for child in mode if child.tag in ("model", "vendor", "feature"))
    return ET.tostring(cpu, encoding="unicode")


def _enum(root: Any, place: str, name: str) -> frozenset[str]:
    values = root.iterfind(f"{place}/enum[@name='{name}']/value")
    return frozenset(value.text for value in values if value.text)
