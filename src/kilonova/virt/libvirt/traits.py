"""libvirt's names of CPU features -> the standard traits of placement."""

from __future__ import annotations

from collections.abc import Iterable

_X86 = "HW_CPU_X86_"
# Where the trait is not simply the feature's name in capitals.
_OTHER = {
    "3dnow": ("3DNOW",),
    "aes": ("AESNI",),
    "amd-no-ssb": ("AMD_NO_SSB",),
    "amd-ssbd": ("AMD_SSBD",),
    "avx512-vpopcntdq": ("AVX512VPOPCNTDQ",),
    "avx512ifma": ("AVX512IFMA",),
    "avx512vbmi": ("AVX512VBMI",),
    "bmi1": ("BMI",),
    "fma": ("FMA3",),
    "gfni": ("AVX512GFNI",),
    "hle": ("TSX",),
    "ibpb": ("AMD_IBPB",),
    "md-clear": ("INTEL_MD_CLEAR",),
    "pcid": ("INTEL_PCID",),
    "pclmuldq": ("CLMUL",),
    "pclmulqdq": ("CLMUL",),
    "pni": ("SSE3",),
    "rtm": ("TSX",),
    "sha-ni": ("SHA",),
    "spec-ctrl": ("INTEL_SPEC_CTRL",),
    "ssbd": ("INTEL_SSBD",),
    "sse4.1": ("SSE41",),
    "sse4.2": ("SSE42",),
    "svm": ("SVM", "AMD_SVM"),
    "vaes": ("AVX512VAES",),
    "virt-ssbd": ("AMD_VIRT_SSBD",),
    "vmx": ("VMX", "INTEL_VMX"),
    "vpclmulqdq": ("AVX512VPCLMULQDQ",),
}
_SAME = """
    abm avx avx2 avx512f avx512cd avx512pf avx512er avx512vl avx512bw avx512dq avx512vnni
    avx512vbmi2 avx512bitalg bmi2 f16c fma4 mmx mpx pdpe1gb sgx sse sse2 sse3 sse4a ssse3 stibp tbm
    xop
"""
_KNOWN = frozenset(_SAME.split())


def cpu_traits(features: Iterable[str]) -> set[str]:
    """The traits of those features that have one."""
    found: set[str] = set()
    for feature in features:
        if feature in _KNOWN:
            found.add(_X86 + feature.upper())
        found.update(_X86 + name for name in _OTHER.get(feature, ()))
    return found
