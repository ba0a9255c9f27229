"""What a host has, and which processor guests get."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kilonova.errors import Failed, HostFault
from kilonova.services.placement.standard import TRAITS
from kilonova.settings import Settings, read_options
from kilonova.virt.libvirt import capabilities as module
from kilonova.virt.libvirt.capabilities import Capabilities, HostCpu, read_machine
from kilonova.virt.libvirt.cpu import choose_cpu
from kilonova.virt.libvirt.driver import disk_cache_mode
from kilonova.virt.libvirt.live_options import LiveOptions
from kilonova.virt.libvirt.options import LibvirtOptions, options_from
from kilonova.virt.libvirt.report import cpu_info, disk_gib, inventories, traits
from kilonova.virt.libvirt.traits import _KNOWN, _OTHER, cpu_traits
from kilonova.virt.libvirt.xml.domain import Cpu
from tests.unit.virt.machines import PC, machine

HOST = """
<capabilities>
  <host>
    <cpu>
      <arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor>
      <topology sockets='1' dies='1' cores='4' threads='2'/>
      <feature name='svm'/><feature name='avx2'/>
    </cpu>
    <topology><cells num='2'><cell id='0'/><cell id='1'/></cells></topology>
  </host>
  <guest><os_type>hvm</os_type>
    <arch name='x86_64'>
      <machine maxCpus='255'>pc-i440fx-7.2</machine>
      <machine canonical='pc-i440fx-7.2' maxCpus='255'>pc</machine>
      <domain type='qemu'/><domain type='kvm'/>
    </arch>
  </guest>
  <guest><os_type>hvm</os_type>
    <arch name='aarch64'><machine>virt</machine><domain type='qemu'/></arch>
  </guest>
</capabilities>
"""
DOMAIN = """
<domainCapabilities>
  <domain>qemu</domain><machine>pc-i440fx-7.2</machine><arch>x86_64</arch><vcpu max='255'/>
  <os supported='yes'><enum name='firmware'><value>efi</value></enum></os>
  <cpu>
    <mode name='host-passthrough' supported='no'/>
    <mode name='maximum' supported='yes'/>
    <mode name='host-model' supported='yes'>
      <model fallback='forbid'>EPYC</model><vendor>AMD</vendor>
      <feature policy='require' name='erms'/><feature policy='disable' name='sha-ni'/>
    </mode>
    <mode name='custom' supported='yes'>
      <model usable='yes'>qemu64</model><model usable='no'>Haswell</model><model usable='unknown'>486</model>
    </mode>
  </cpu>
  <devices>
    <disk supported='yes'><enum name='bus'><value>ide</value><value>virtio</value></enum></disk>
    <video supported='yes'><enum name='modelType'><value>vga</value></enum></video>
  </devices>
</domainCapabilities>
"""


class Link:
    """What libvirt says, and how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []

    def getCapabilities(self) -> str:  # noqa: N802
        return HOST

    def getDomainCapabilities(self, *wanted: object) -> str:  # noqa: N802
        self.asked.append(wanted)
        return DOMAIN


class Connection:
    def __init__(self) -> None:
        self.link = Link()

    async def call(self, work):  # type: ignore[no-untyped-def]
        return work(self.link)


def capabilities(virt_type: str = "qemu") -> Capabilities:
    return Capabilities(Connection(), virt_type)  # type: ignore[arg-type]


async def test_the_host_is_read() -> None:
    found = capabilities()
    await found.open()
    assert found.cpu == HostCpu(
        arch="x86_64",
        model="EPYC",
        vendor="AMD",
        features=("avx2", "svm"),
        topology={"cells": 2, "sockets": 1, "cores": 4, "threads": 2},
    )
    assert found.machine_types == {"pc", "pc-i440fx-7.2"}
    assert cpu_info(found.cpu) == {
        "arch": "x86_64",
        "model": "EPYC",
        "vendor": "AMD",
        "topology": {"cells": 2, "sockets": 1, "cores": 4, "threads": 2},
        "features": ["avx2", "svm"],
    }


async def test_machines_are_asked_once_until_libvirtd_restarts() -> None:
    found = capabilities()
    await found.open()
    first = await found.machine("pc")
    assert await found.machine("pc") is first
    link = found._connection.link  # type: ignore[attr-defined]
    assert link.asked == [(None, "x86_64", "pc", "qemu", 0)]
    found.forget()
    await found.machine("pc")
    assert len(link.asked) == 2
    with pytest.raises(HostFault, match="'virt' is not known to QEMU"):
        await found.machine("virt")


def test_a_machine_is_read() -> None:
    found = read_machine(DOMAIN)
    assert (found.name, found.arch, found.max_vcpus, found.is_q35) == (PC.name, "x86_64", 255, False)
    assert found.cpu_modes == {"maximum", "host-model", "custom"}
    assert found.cpu_models == ("qemu64", "486")
    assert found.disk_buses == {"ide", "virtio"}
    assert found.video_models == {"vga"}
    assert found.firmware == {"efi"}
    assert '<arch>x86_64</arch><model fallback="forbid">EPYC</model>' in found.cpu
    assert machine("pc-q35-7.2").is_q35


@pytest.mark.parametrize(
    ("wanted", "fault", "expected"),
    [("qemu", "", "qemu"), ("auto", "", "kvm"), ("auto", "broken", "qemu"), ("kvm", "", "kvm")],
)
async def test_kvm_is_taken_if_it_works(
    monkeypatch: pytest.MonkeyPatch, wanted: str, fault: str, expected: str
) -> None:
    async def kvm_fault() -> str:
        return fault

    monkeypatch.setattr(module, "kvm_fault", kvm_fault)
    found = capabilities(wanted)
    with capture_logs() as logs:
        await found.open()
    assert found.virt_type == expected
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [entry.get("reason") for entry in warnings] == ([fault] if fault else [])


async def test_kvm_that_is_demanded_and_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    async def kvm_fault() -> str:
        return "permission denied"

    monkeypatch.setattr(module, "kvm_fault", kvm_fault)
    with pytest.raises(Failed, match=r"virt_type is kvm, and KVM does not work .*: permission denied"):
        await capabilities("kvm").open()


async def test_a_probe_that_hangs_or_dies_is_a_no(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    monkeypatch.setattr(module.sys, "executable", str(python))
    monkeypatch.setattr(module, "PROBE_TIMEOUT", 0.2)
    for script, word in (
        ("exec sleep 1000", "did not end within 0.2 seconds"),
        ("echo no good >&2; exit 1", "no good"),
        ("kill -SEGV $$", "code -11"),
        ("exit 0", ""),
    ):
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        monkeypatch.setattr(module, "PROBE_TIMEOUT", 0.2 if "sleep" in script else 30)
        assert word in await module.kvm_fault() if word else await module.kvm_fault() == ""


def options(**more: object) -> LibvirtOptions:
    return LibvirtOptions(**more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "models", "virt_type", "expected"),
    [
        (None, (), "qemu", Cpu(mode="maximum")),
        (None, (), "kvm", Cpu(mode="host-model")),
        ("none", (), "kvm", Cpu()),
        ("host-model", (), "qemu", Cpu(mode="host-model")),
        ("host-passthrough", (), "qemu", Cpu(mode="maximum")),
        ("custom", ("Haswell", "Nehalem"), "qemu", Cpu(mode="custom", model="Nehalem")),
    ],
)
def test_processor_of_guests(
    mode: str | None, models: tuple[str, ...], virt_type: str, expected: Cpu
) -> None:
    assert choose_cpu(options(cpu_mode=mode, cpu_models=models), PC, virt_type) == expected


@pytest.mark.parametrize(
    ("mode", "models", "words"),
    [
        (
            "host-passthrough",
            (),
            "cpu_mode is host-passthrough, which this host does not support: use one of",
        ),
        ("custom", (), "names no model"),
        ("custom", ("Haswell",), r"None of \[libvirt\]cpu_models \(Haswell\) runs .*: Nehalem, qemu64"),
    ],
)
def test_processors_that_this_host_does_not_have(mode: str, models: tuple[str, ...], words: str) -> None:
    with pytest.raises(Failed, match=words):
        choose_cpu(options(cpu_mode=mode, cpu_models=models), PC, "kvm")


def test_inventories_are_all_that_there_is() -> None:
    found = inventories(4, 2, 4096, 100)
    assert {name: (i.total, i.reserved, i.max_unit, i.allocation_ratio) for name, i in found.items()} == {
        "VCPU": (4, 0, 4, 1.0),
        "PCPU": (2, 0, 2, 1.0),
        "MEMORY_MB": (4096, 0, 4096, 1.0),
        "DISK_GB": (100, 0, 100, 1.0),
    }
    assert set(inventories(0, 2, 4096, 100)) == {"PCPU", "MEMORY_MB", "DISK_GB"}


def test_disk_of_the_guests_file_system(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    assert disk_gib(tmp_path) == found.f_blocks * found.f_frsize // (1 << 30)


def test_traits_are_standard_ones_and_true() -> None:
    found = traits(machine(firmware=frozenset()), frozenset({"avx2", "svm", "no-such-feature"}))
    assert set(found) <= TRAITS
    for expected in (
        "COMPUTE_NODE",
        "COMPUTE_IMAGE_TYPE_QCOW2",
        "COMPUTE_STORAGE_BUS_VIRTIO",
        "COMPUTE_GRAPHICS_MODEL_VGA",
        "COMPUTE_NET_VIF_MODEL_VIRTIO",
        "COMPUTE_NET_ATTACH_INTERFACE",
        "COMPUTE_NET_ATTACH_INTERFACE_WITH_TAG",
        "HW_CPU_X86_AVX2",
        "HW_CPU_X86_SVM",
        "HW_CPU_X86_AMD_SVM",
        "HW_ARCH_X86_64",
    ):
        assert expected in found
    assert "COMPUTE_FIRMWARE_UEFI" not in found
    assert "COMPUTE_GRAPHICS_MODEL_VMVGA" not in found  # the machine does not have it
    assert "COMPUTE_FIRMWARE_UEFI" in traits(machine(), frozenset())


def test_every_trait_that_can_come_out_is_a_standard_one() -> None:
    assert cpu_traits([*_KNOWN, *_OTHER]) <= TRAITS
    assert cpu_traits(["sse4.1", "fma", "aes", "pclmuldq"]) == {
        "HW_CPU_X86_SSE41",
        "HW_CPU_X86_FMA3",
        "HW_CPU_X86_AESNI",
        "HW_CPU_X86_CLMUL",
    }


def test_options_from_settings(tmp_path: Path) -> None:
    file = tmp_path / "nova.conf"
    file.write_text(
        "[DEFAULT]\nmy_ip = 10.0.0.1\nconfig_drive_format = vfat\n"
        "[libvirt]\nvirt_type = qemu\nconnection_uri = qemu:///x\ncpu_mode = custom\ncpu_models = a,b\n"
        "hw_machine_type = aarch64=virt,x86_64=q35\ntb_cache_size = 32\nwait_soft_reboot_seconds = 7\n"
        "[vnc]\nenabled = false\nserver_listen = 0.0.0.0\n"
    )
    settings = Settings(state_dir=tmp_path, options=read_options(file))
    assert options_from(settings) == LibvirtOptions(
        host_ip="10.0.0.1",
        connection_uri="qemu:///x",
        virt_type="qemu",
        cpu_mode="custom",
        cpu_models=("a", "b"),
        machine_type="q35",
        tb_cache_mib=32,
        soft_reboot_timeout=7.0,
        config_drive_format="vfat",
        vnc=False,
        vnc_listen="0.0.0.0",
        live=LiveOptions(address="10.0.0.1"),
    )
    assert options_from(Settings(state_dir=tmp_path, options=read_options(None))) == LibvirtOptions()


def test_cache_mode_is_what_the_file_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk_cache_mode(tmp_path) in ("none", "writeback")
    assert list(tmp_path.iterdir()) == []
    real = os.open

    def no_direct(path: object, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, mode)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", no_direct)
    assert disk_cache_mode(tmp_path) == "writeback"
