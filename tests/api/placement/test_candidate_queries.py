"""What cannot be asked of allocation candidates, and what is said to whoever asks it."""

from __future__ import annotations

import pytest

from tests.api.placement.face import Face, is_fault
from tests.api.placement.park import Park

pytestmark = pytest.mark.asyncio(loop_scope="module")

BAD = "placement.query.bad_value"


@pytest.mark.parametrize(
    ("query", "version", "says", "code"),
    [
        ("", 10, "'resources' is a required property", BAD),
        ("", 25, "At least one request group", BAD),
        ("group_policy=isolate", 35, "At least one request group", BAD),
        ("", 36, "at least one resources", "placement.query.missing_value"),
        ("required_A=HW_CPU_X86_AVX&same_subtree=_A", 36, "at least one", "placement.query.missing_value"),
        ("resources=", 39, "empty string", BAD),
        ("resources=VCPU", 39, "Badly formed resources", BAD),
        ("resources=VCPU:1&resources=VCPU:2", 39, "only once", "placement.query.duplicate_key"),
        ("resources=MCPU:99", 39, "Invalid resource class in resources parameter", BAD),
        ("resources=VCPU:1&resources1=MCPU:99", 39, "Invalid resource class", BAD),
        ("resources=VCPU:1&limit=cow", 39, "limit", BAD),
        ("resources=VCPU:1&limit=0", 39, "limit", BAD),
        ("resources=VCPU:1&limit=-9", 39, "limit", BAD),
        ("resources=VCPU:1&limit=", 39, "limit", BAD),
        ("resources=VCPU:1&limit=" + "9" * 5000, 39, "limit", BAD),
        ("resources=VCPU:1&limit=1&limit=2", 39, "only once", "placement.query.duplicate_key"),
        ("resources=VCPU:1&limit=\u0661", 39, "limit", BAD),
        ("resources=VCPU:1&required=", 17, "HW_CPU_X86_VMX, got", BAD),
        ("resources=VCPU:1&required=", 22, "!CUSTOM_MAGIC", BAD),
        ("resources=VCPU:1&required=,,", 39, "separated by commas", BAD),
        ("resources=VCPU:1&required=!HW_CPU_X86_AVX", 21, "separated by commas", BAD),
        ("resources=VCPU:1&required=!", 39, "separated by commas", BAD),
        ("resources=VCPU:1&required=INVALID_TRAIT", 39, "No such trait(s): INVALID_TRAIT", BAD),
        ("resources=VCPU:1&required=!INVALID_TRAIT", 39, "No such trait(s): INVALID_TRAIT", BAD),
        ("resources1=VCPU:1&required1=INVALID_TRAIT", 39, "No such trait(s)", BAD),
        ("resources=VCPU:1&required=in:HW_CPU_X86_AVX,CUSTOM_X", 38, "in:HW_CPU_X86_AVX", BAD),
        ("resources=VCPU:1&required=in:HW_CPU_X86_AVX,CUSTOM_X", 39, "CUSTOM_X", BAD),
        ("resources=VCPU:1&required=in:", 39, "separated by commas", BAD),
        ("resources=VCPU:1&required=in:HW_CPU_X86_AVX,!HW_CPU_X86_SSE", 39, "No such trait(s): !HW", BAD),
        ("resources=VCPU:1&required=HW_CPU_X86_AVX,!HW_CPU_X86_AVX", 39, "Conflicting required", BAD),
        ("resourcesA=VCPU:1&requiredA=HW_CPU_X86_AVX,!HW_CPU_X86_AVX", 39, "found in requiredA", BAD),
        ("resources=VCPU:1&member_of=INVALID_UUID", 39, "valid UUID(s)", BAD),
        ("resources=VCPU:1&member_of=in:", 39, "valid UUID(s)", BAD),
        ("resources=VCPU:1&member_of=!in:x", 39, "valid UUID(s)", BAD),
        ("resources=VCPU:1&member_of=@aggregate-a,@aggregate-b", 39, "after 'in:'", BAD),
        ("resources=VCPU:1&member_of=in:@aggregate-a,!@aggregate-b", 39, "valid UUID(s)", BAD),
        ("resources=VCPU:1&member_of=!@aggregate-a", 31, "Forbidden member_of", BAD),
        ("resources=VCPU:1&member_of=@aggregate-a&member_of=@aggregate-b", 23, "Multiple member_of", BAD),
        ("resources=VCPU:1&in_tree=life-is-beautiful", 39, "format of uuid", BAD),
        ("resources=VCPU:1&in_tree=@cn1&in_tree=@cn2", 39, "only once", "placement.query.duplicate_key"),
        ("resources=VCPU:1&in_tree1=@cn1", 31, "must specify resources", BAD),
        ("resources1=VCPU:1&required=HW_CPU_X86_AVX", 39, "must specify resources", BAD),
        ("resources=VCPU:1&required1=HW_CPU_X86_AVX", 35, "must specify resources", BAD),
        ("resources=VCPU:1&member_of3=@aggregate-a", 25, "orphaned", BAD),
        ("resources1=VCPU:1&required2=HW_CPU_X86_AVX&group_policy=none", 36, "same_subtree", BAD),
        ("resources1=VCPU:1&member_of2=@aggregate-a&group_policy=none", 36, "same_subtree", BAD),
        ("resources1=VCPU:1&resources2=VCPU:1", 25, '"group_policy" parameter is required', BAD),
        ("resources1=VCPU:1&required2=HW_CPU_X86_AVX&same_subtree=1,2", 39, "group_policy", BAD),
        ("resources=VCPU:1&group_policy=bogus", 39, "not one of ['none', 'isolate']", BAD),
        ("resources01=VCPU:1", 32, "'resources01' was unexpected", BAD),
        ("resources1a=VCPU:1", 32, "'resources1a' was unexpected", BAD),
        ("resources_" + "a" * 64 + "=VCPU:1", 39, "was unexpected", BAD),
        ("resources_a.b=VCPU:1", 39, "was unexpected", BAD),
        ("resources_\u00e9=VCPU:1", 39, "was unexpected", BAD),
        ("limit1=4&resources=VCPU:1", 39, "was unexpected", BAD),
        ("group_policy1=none&resources=VCPU:1", 39, "was unexpected", BAD),
        ("root_required1=HW_CPU_X86_AVX&resources=VCPU:1", 39, "was unexpected", BAD),
        ("same_subtree1=1&resources1=VCPU:1", 39, "was unexpected", BAD),
        ("resource=VCPU:1", 39, "was unexpected", BAD),
        ("resources=VCPU:1&root_required=HW_CPU_X86_AVX,!HW_CPU_X86_AVX", 39, "found in root_required", BAD),
        ("resources=VCPU:1&root_required=CUSTOM_NO", 39, "No such trait(s): CUSTOM_NO", BAD),
        ("resources=VCPU:1&root_required=!CUSTOM_NO", 39, "No such trait(s): CUSTOM_NO", BAD),
        ("resources=VCPU:1&root_required=in:HW_CPU_X86_AVX", 39, "No such trait(s)", BAD),
        (
            "resources=VCPU:1&root_required=HW_CPU_X86_AVX&root_required=HW_CPU_X86_SSE",
            39,
            "only once",
            "placement.query.duplicate_key",
        ),
        ("resources_A=VCPU:1&same_subtree=A", 39, "Real suffixes", BAD),
        ("resources_A=VCPU:1&same_subtree=_A,,_A", 39, "Empty string", BAD),
        ("resources_A=VCPU:1&same_subtree=", 39, "Empty string", BAD),
    ],
)
async def test_what_cannot_be_asked(face: Face, query: str, version: int, says: str, code: str) -> None:
    park = Park(face)
    for name in ("aggregate-a", "aggregate-b", "cn1", "cn2"):  # whether they are there does not matter
        park.uuid(name)
    pairs = [tuple(each.split("=", 1)) for each in query.split("&") if each]
    reply = await park.ask(pairs, version)  # type: ignore[arg-type]
    assert says in is_fault(reply, 400, code if version >= 23 else None)
