"""What an uploaded file is: real files of qemu-img, hostile ones, and any bytes at all."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kilonova.services.image.inspect import FORMATS, UnsafeImage, detect, inspect

MIB = 1 << 20


def qemu_img(*arguments: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def made(path: Path, kind: str, *options: str, size: str = "64M") -> Path:
    extra = [word for option in options for word in ("-o", option)]
    qemu_img("create", "-f", kind, *extra, path, size)
    return path


def seen(path: Path, declared: str) -> object:
    with path.open("rb") as file:
        return inspect(file, declared)


def iso(*, boot_record: bool = False) -> bytearray:
    data = bytearray(20 * 2048)
    data[16 * 2048 : 16 * 2048 + 7] = b"\x01CD001\x01"
    if boot_record:
        data[446:462] = struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x17, b"\0\0\0", 0, 80)
        data[510:512] = b"\x55\xaa"
    return data


@pytest.mark.parametrize(
    "options",
    [
        ("compat=0.10",),
        ("compat=1.1",),
        ("cluster_size=512",),
        ("cluster_size=2M",),
        ("compression_type=zstd",),
        ("extended_l2=on,cluster_size=128k",),
        ("lazy_refcounts=on",),
        ("preallocation=metadata",),
        ("refcount_bits=1",),
    ],
)
def test_every_kind_of_qcow2_tells_the_size_of_its_disk(tmp_path: Path, options: tuple[str, ...]) -> None:
    found = seen(made(tmp_path / "disk", "qcow2", *options, size="100M"), "qcow2")
    assert (found.format, found.virtual_size) == ("qcow2", 100 * MIB)


def test_a_converted_disk_with_data_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(range(256)) * 8192)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "disk")
    assert seen(tmp_path / "disk", "qcow2").virtual_size == 2 * MIB


def test_a_disk_with_snapshots_and_bitmaps_is_accepted(tmp_path: Path) -> None:
    disk = made(tmp_path / "disk", "qcow2")
    qemu_img("snapshot", "-c", "before", disk)
    qemu_img("bitmap", "--add", disk, "changes")
    assert seen(disk, "qcow2").virtual_size == 64 * MIB


def test_a_disk_of_many_terabytes_has_its_size(tmp_path: Path) -> None:
    assert seen(made(tmp_path / "disk", "qcow2", size="60T"), "qcow2").virtual_size == 60 << 40


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_backing_file_is_refused(tmp_path: Path, compat: str) -> None:
    disk = tmp_path / "disk"
    qemu_img(
        "create", "-f", "qcow2", "-o", f"compat={compat}", "-u", "-b", "/etc/passwd", "-F", "raw", disk, "1M"
    )
    with pytest.raises(UnsafeImage, match="backing file"):
        seen(disk, "qcow2")


def test_an_external_data_file_is_refused(tmp_path: Path) -> None:
    disk = made(tmp_path / "disk", "qcow2", f"data_file={tmp_path / 'data'}")
    with pytest.raises(UnsafeImage, match="another file"):
        seen(disk, "qcow2")
    data = bytearray(disk.read_bytes())
    data[72:80] = bytes(8)  # the feature hidden, the name of the file still there
    disk.write_bytes(data)
    with pytest.raises(UnsafeImage, match="external data file"):
        seen(disk, "qcow2")


def test_an_encrypted_disk_is_refused(tmp_path: Path) -> None:
    """With AES: to make one with LUKS QEMU first measures the processor, and fails now and then."""
    disk = tmp_path / "disk"
    secret = "secret,id=s,data=abcdefgh"
    options = "encrypt.format=aes,encrypt.key-secret=s"
    qemu_img("create", "-f", "qcow2", "--object", secret, "-o", options, disk, "1M")
    with pytest.raises(UnsafeImage, match="encrypted"):
        seen(disk, "qcow2")


def test_a_disk_that_says_that_luks_encrypts_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeImage, match="encrypted"):
        seen(patched(tmp_path, 32, ">I", 2), "qcow2")


def patched(tmp_path: Path, at: int, form: str, *values: object) -> Path:
    disk = made(tmp_path / "disk", "qcow2")
    data = bytearray(disk.read_bytes())
    struct.pack_into(form, data, at, *values)
    disk.write_bytes(data)
    return disk


@pytest.mark.parametrize(
    ("at", "form", "value", "reason"),
    [
        (4, ">I", 1, "version"),
        (4, ">I", 4, "version"),
        (8, ">Q", 512, "backing file"),
        (20, ">I", 8, "impossible"),
        (20, ">I", 22, "impossible"),
        (20, ">I", 0xFFFFFFFF, "impossible"),
        (24, ">Q", 0, "bytes is not possible"),
        (24, ">Q", 1 << 63, "bytes is not possible"),
        (24, ">Q", 1 << 50, "does not fit"),
        (32, ">I", 1, "encrypted"),
        (36, ">I", 0xFFFFFFFF, "beyond the end"),
        (36, ">I", 0, "does not fit"),
        (40, ">Q", 1 << 40, "beyond the end"),
        (40, ">Q", 513, "aligned"),
        (48, ">Q", 0, "reference count"),
        (48, ">Q", 1 << 60, "beyond the end"),
        (60, ">I", 1 << 20, "impossible"),
        (72, ">Q", 1 << 1, "corrupt"),
        (72, ">Q", 1 << 2, "another file"),
        (72, ">Q", 1 << 3 | 1 << 40, "unknown features"),
        (72, ">Q", 1 << 63, "unknown features"),
        (96, ">I", 7, "width"),
        (100, ">I", 96, "header"),
        (100, ">I", 0xFFFFFFF8, "header"),
        (100, ">I", 108, "header"),
    ],
)
def test_a_spoilt_header_is_refused(tmp_path: Path, at: int, form: str, value: int, reason: str) -> None:
    with pytest.raises(UnsafeImage, match=reason):
        seen(patched(tmp_path, at, form, value), "qcow2")


def test_a_header_that_qemu_img_refuses_is_refused_here_too(tmp_path: Path) -> None:
    disk = patched(tmp_path, 24, ">Q", 1 << 50)
    assert subprocess.run(["qemu-img", "info", "-f", "qcow2", str(disk)], capture_output=True).returncode


def test_a_cut_off_disk_is_refused(tmp_path: Path) -> None:
    whole = made(tmp_path / "disk", "qcow2").read_bytes()
    for length in (4, 40, 71, 72, 100, 65536):
        with pytest.raises(UnsafeImage):
            inspect(io.BytesIO(whole[:length]), "qcow2")


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels", "luks"])
def test_a_foreign_disk_is_refused_as_raw_and_as_iso(tmp_path: Path, kind: str) -> None:
    disk = tmp_path / "disk"
    secret = ("--object", "secret,id=s,data=abcdefgh", "-o", "key-secret=s,iter-time=10")
    qemu_img("create", "-f", kind, *(secret if kind == "luks" else ()), disk, "8M")
    for declared in ("raw", "iso"):
        with pytest.raises(UnsafeImage, match=f"declared as {declared}, but its content is"):
            seen(disk, declared)
    if kind != "qcow2":
        with pytest.raises(UnsafeImage, match="declared as qcow2"):
            seen(disk, "qcow2")
    with disk.open("rb") as file:
        assert detect(file) == {"vpc": "vhd"}.get(kind, kind)


def test_a_vmdk_that_is_only_a_descriptor_is_refused(tmp_path: Path) -> None:
    text = b'# Disk DescriptorFile\nversion=1\nRW 8 FLAT "/etc/shadow" 0\n'
    for data in (text, b"\n  " + text, text.upper()):
        with pytest.raises(UnsafeImage, match="vmdk"):
            inspect(io.BytesIO(data), "raw")


def test_a_fixed_vhd_has_only_a_footer_and_is_refused(tmp_path: Path) -> None:
    disk = made(tmp_path / "disk", "vpc", "subformat=fixed", size="1M")
    with pytest.raises(UnsafeImage, match="vhd"):
        seen(disk, "raw")


def test_raw_disks_are_raw_whatever_is_on_them(tmp_path: Path) -> None:
    assert inspect(io.BytesIO(b"*" * 1024), "raw").virtual_size == 1024
    assert inspect(io.BytesIO(b"x"), "raw").virtual_size == 1
    gpt = bytearray(MIB)
    gpt[446:462] = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, 2047)
    gpt[510:520] = b"\x55\xaaEFI PART"
    assert inspect(io.BytesIO(gpt), "raw").table == "gpt"
    assert inspect(io.BytesIO(iso(boot_record=True)), "raw").table == "mbr"


def test_isos_are_told_by_their_volume_descriptor() -> None:
    assert inspect(io.BytesIO(iso()), "iso").format == "iso"
    hybrid = inspect(io.BytesIO(iso(boot_record=True)), "iso")
    assert (hybrid.table, hybrid.virtual_size) == ("mbr", 40960)
    with pytest.raises(UnsafeImage, match="no ISO 9660"):
        inspect(io.BytesIO(bytes(40960)), "iso")


def test_an_iso_that_is_also_a_qcow2_is_refused_as_anything(tmp_path: Path) -> None:
    both = bytearray(made(tmp_path / "disk", "qcow2").read_bytes())
    both[16 * 2048 : 16 * 2048 + 6] = b"\x01CD001"
    for declared in ("iso", "raw"):
        with pytest.raises(UnsafeImage, match="qcow2"):
            inspect(io.BytesIO(both), declared)


def test_an_unsupported_format_is_refused() -> None:
    with pytest.raises(UnsafeImage, match="not supported"):
        inspect(io.BytesIO(b"KDMV"), "vmdk")


SOUND_V3 = struct.pack(
    ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, MIB, 0, 1, 196608, 65536, 1, 0, 0, 0, 0, 0, 4, 104
) + bytes(262144 - 104)


@given(st.binary(max_size=4096), st.sampled_from((*FORMATS, "vmdk")))
@example(SOUND_V3, "qcow2")
def test_no_bytes_make_the_inspection_fail_otherwise_than_by_refusing(data: bytes, declared: str) -> None:
    try:
        found = inspect(io.BytesIO(data), declared)
    except UnsafeImage:
        return
    assert found.format == declared
    assert found.virtual_size >= 0


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, 120), st.binary(min_size=1, max_size=8)), max_size=4),
    st.integers(0, len(SOUND_V3)),
)
def test_a_mutated_header_is_refused_or_makes_sense(edits: list[tuple[int, bytes]], length: int) -> None:
    data = bytearray(SOUND_V3)
    for at, new in edits:
        data[at : at + len(new)] = new
    try:
        found = inspect(io.BytesIO(data[:length]), "qcow2")
    except UnsafeImage:
        return
    assert 0 < found.virtual_size < 1 << 62
    assert data[8:16] == bytes(8)  # no backing file gets through
    version = struct.unpack_from(">I", data, 4)[0]
    assert version == 2 or not struct.unpack_from(">Q", data, 72)[0] & 0b110


def test_the_sound_header_is_accepted() -> None:
    assert inspect(io.BytesIO(SOUND_V3), "qcow2").virtual_size == MIB
