"""Does KVM really work?  Make a machine with /dev/kvm and let it do what every system does when it boots.

That the device can be opened, or that a machine can be made, says little: there are hosts whose KVM runs
simple code and gives up at the first return from an interrupt, or hangs.  So the guest goes from real mode
to protected mode and on to 64 bits with paging, returns from an "interrupt" in both, and adds two numbers.
This is a program of its own, since what hangs in the kernel cannot be stopped otherwise:
``python -m kilonova.virt.libvirt.kvm_probe`` exits with 0 if all went well, and else says why not.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import sys

GET_API_VERSION, CREATE_VM, GET_VCPU_MMAP_SIZE = 0xAE00, 0xAE01, 0xAE04
CREATE_VCPU, RUN = 0xAE41, 0xAE80
SET_USER_MEMORY_REGION = 0x4020AE46
GET_SREGS, SET_SREGS, SET_REGS = 0x8138AE83, 0x4138AE84, 0x4090AE82
GET_SUPPORTED_CPUID, SET_CPUID2 = 0xC008AE05, 0x4008AE90
CPUID_ENTRIES = 256
SREGS_SIZE = 312
EXIT_IO = 2
MEMORY, CODE_AT, PORT, ANSWER = 0x10000, 0x1000, 0x10, 42
CODE = bytes.fromhex(
    "fa 660f0116c810"  # cli; lgdt [gdtr]
    "0f20c0 0c01 0f22c0"  # cr0 |= PE
    "66ea171000000800"  # jmp 0x08:protected
    # protected (32 bits):
    "66b81000 8ed8 8ec0 8ed0"  # ds = es = ss = 0x10
    "bc00800000"  # esp = 0x8000
    "9c 6a08 682f100000 cf"  # push flags, 0x08, next; iret
    # next: page tables at 0x2000, one page of 2 MiB at 0
    "bf00200000 c70707300000 c7870010000007400000 c7870020000087000000"
    "0f22df"  # cr3 = 0x2000
    "0f20e0 0d20060000 0f22e0"  # cr4 |= PAE, OSFXSR, OSXMMEXCPT
    "b9800000c0 0f32 660d0001 0f30"  # EFER |= LME
    "0f20c0 0d02000080 0f22c0"  # cr0 |= PG, MP
    "ea7b1000001800"  # jmp 0x18:long
    # long (64 bits):
    "bc00800000 8cd0 50 6800800000 9c 6a18 6892100000 48cf"  # push ss, rsp, flags, 0x18, last; iretq
    # last: 21.0 + 21.0, by SSE2
    "b815000000 f20f2ac0 f20f58c0 f20f2dc0"
    "e610 f4"  # out 0x10, al; hlt
    "6690"
    # the segments: none, code of 32 bits, data, code of 64 bits; then what lgdt reads
    "0000000000000000 ffff0000009acf00 ffff00000092cf00 ffff0000009aaf00"
    "1f00 a8100000"
)


def probe() -> str:
    """What is wrong with KVM; empty if nothing is.  Raises OSError."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    version = fcntl.ioctl(kvm, GET_API_VERSION)
    if version != 12:
        return f"/dev/kvm speaks version {version}, not 12"
    machine = fcntl.ioctl(kvm, CREATE_VM, 0)
    memory = mmap.mmap(-1, MEMORY)
    memory[CODE_AT : CODE_AT + len(CODE)] = CODE
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(machine, SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", 0, 0, 0, MEMORY, address))
    cpu = fcntl.ioctl(machine, CREATE_VCPU, 0)
    features = bytearray(struct.pack("=II", CPUID_ENTRIES, 0) + bytes(40 * CPUID_ENTRIES))
    fcntl.ioctl(kvm, GET_SUPPORTED_CPUID, features, True)
    fcntl.ioctl(cpu, SET_CPUID2, features, True)
    special = bytearray(SREGS_SIZE)
    fcntl.ioctl(cpu, GET_SREGS, special, True)
    struct.pack_into("=QIH", special, 0, 0, 0xFFFF, 0)  # the code segment begins at 0
    fcntl.ioctl(cpu, SET_SREGS, bytes(special))
    fcntl.ioctl(cpu, SET_REGS, struct.pack("=18Q", *[0] * 16, CODE_AT, 2))
    state = mmap.mmap(cpu, fcntl.ioctl(kvm, GET_VCPU_MMAP_SIZE, 0))
    fcntl.ioctl(cpu, RUN, 0)
    reason = struct.unpack_from("=I", state, 8)[0]
    if reason != EXIT_IO:
        return f"the guest stopped for reason {reason} in place of saying its result"
    _, _, port, _, offset = struct.unpack_from("=BBHIQ", state, 32)
    if (port, state[offset]) != (PORT, ANSWER):
        return f"the guest said {state[offset]} on port {port}, not {ANSWER} on {PORT}"
    return ""


if __name__ == "__main__":
    try:
        wrong = probe()
    except OSError as error:
        wrong = str(error)
    sys.exit(wrong or 0)
