"""Provider config files: what is in them, and each way in which one can be wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from kilonova.errors import Failed
from kilonova.resources.provider_config import COMPUTE_NODE, ProviderExtra, load, parse

UUID = "5213b75d-9260-42a6-b236-f39b0fd10561"
META = "meta: {schema_version: '1.0'}\n"
GOOD = f"""
meta:
  schema_version: '1.0'
  made_by: somebody
ours: 1
providers:
  - identification: {{uuid: {COMPUTE_NODE}}}
    note: mine
    inventories:
      hint: 1
      additional:
        - CUSTOM_LICENSE:
            total: 100
            reserved: 1
            min_unit: 2
            max_unit: 10
            step_size: 2
            allocation_ratio: 1.5
        - CUSTOM_A: {{total: 1}}
          CUSTOM_B: {{total: 2, allocation_ratio: 3}}
    traits:
      hint: 1
      additional: [CUSTOM_T2, CUSTOM_T1, CUSTOM_T2]
  - identification: {{name: 'socket 1'}}
    traits: {{additional: [CUSTOM_T1]}}
"""


def provider(identification: str = f"uuid: {UUID}", rest: str = "traits: {additional: [CUSTOM_A]}") -> str:
    return f"{META}providers:\n  - identification: {{{identification}}}\n    {rest}\n"


def inventory(record: str) -> str:
    return provider(rest=f"inventories: {{additional: [{{CUSTOM_A: {record}}}]}}")


@pytest.mark.capability("PC-4", "PC-5", "PC-6", "PC-7")
def test_a_file_with_all_that_there_is() -> None:
    assert parse("f.yaml", GOOD.encode()) == [
        ProviderExtra(
            uuid=COMPUTE_NODE,
            inventories={
                "CUSTOM_LICENSE": {
                    "total": 100,
                    "reserved": 1,
                    "min_unit": 2,
                    "max_unit": 10,
                    "step_size": 2,
                    "allocation_ratio": 1.5,
                },
                "CUSTOM_A": {"total": 1},
                "CUSTOM_B": {"total": 2, "allocation_ratio": 3.0},
            },
            traits=("CUSTOM_T1", "CUSTOM_T2"),
            source="f.yaml",
        ),
        ProviderExtra(name="socket 1", traits=("CUSTOM_T1",), source="f.yaml"),
    ]


@pytest.mark.capability("PC-4")
def test_only_meta_is_mandatory_and_uuids_are_told_apart_without_case() -> None:
    assert parse("f", META.encode()) == []
    assert parse("f", provider(f"uuid: {UUID.upper()}").encode())[0].uuid == UUID


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        # no YAML (PC-2)
        pytest.param("a: [", "1:5", "expected the node content", marks=pytest.mark.capability("PC-2")),
        ("a: 1\nb: 'x", "2:6", "unexpected end of stream"),
        ("a:\n  \tb: 1", "2:3", "cannot start any token"),
        ("ä: \0", "1:4", "U+0000 cannot be here"),
        ("a: *b", "1:4", "undefined alias"),
        ("a: &x [*x]", "1:4", "refers to itself"),
        ("a: 1\n---\nb: 2", "2:1", "another document"),
        ("a: !!python/object:os.x {}", "1:4", "means nothing here"),
        ("a: !!python/name:os.x ''", "1:4", "could not determine a constructor"),
        ("a: 2001-99-99", "1:4", "this is no timestamp"),
        ("[" * 1100, "1:1", "nested too deeply"),
        ("a: 1\nb: 2\na: 3", "3:1", "the key 'a' is given twice"),
        ("1: 2", "1:1", "1 is no text"),
        ("? [a]\n: b", "1:3", "a list is no text"),
        # the document
        ("", "1:1", "has to be a mapping, not None"),
        ("- a", "1:1", "has to be a mapping, not a list"),
        pytest.param("providers: []", "1:1", "'meta' is missing", marks=pytest.mark.capability("PC-4")),
        ("meta: x", "1:7", "meta has to be a mapping, not 'x'"),
        # its version (PC-3)
        pytest.param("meta: {}", "1:7", "'schema_version' is missing", marks=pytest.mark.capability("PC-3")),
        ("meta: {schema_version: 1.0}", "1:24", "schema_version is 1.0; it has to be a text like '1.0'"),
        ("meta: {schema_version: '1'}", "1:24", "has to be a text like '1.0'"),
        ("meta: {schema_version: '2.0'}", "1:24", "'2.0', and only 1.x is understood"),
        ("meta: {schema_version: '11.0'}", "1:24", "only 1.x is understood"),
        # providers
        (META + "providers: {}", "2:12", "providers has to be a list, not a mapping"),
        (META + "providers: [x]", "2:13", "a provider has to be a mapping, not 'x'"),
        (META + "providers: [{}]", "2:13", "'identification' is missing"),
        pytest.param(
            provider("a: 1"), "3:25", "has uuid or name, not 'a'", marks=pytest.mark.capability("PC-5")
        ),
        (provider(""), "3:21", "has to have one of uuid and name"),
        (provider(f"uuid: {UUID}, name: x"), "3:21", "has to have one of uuid and name"),
        (provider("uuid: 1"), "3:28", "uuid is 1; it has to be a text"),
        (provider("uuid: abc"), "3:28", "'abc' is neither a uuid nor $COMPUTE_NODE"),
        (provider(f"uuid: {UUID.replace('-', '')}"), "3:28", "is neither a uuid nor"),
        (provider(f"uuid: '{UUID}\n\n '"), "3:28", "is neither a uuid nor"),
        (provider("name: ''"), "3:28", "1 to 200 characters, not 0"),
        (provider(f"name: {'n' * 201}"), "3:28", "1 to 200 characters, not 201"),
        (provider("name: null"), "3:28", "name is None; it has to be a text"),
        pytest.param(
            provider(rest="__source_file: x"),
            "4:20",
            "__source_file is reserved",
            marks=pytest.mark.capability("PC-11"),
        ),
        # inventories (PC-6)
        (provider(rest="inventories: []"), "4:18", "inventories has to be a mapping"),
        (provider(rest="inventories: {additional: {}}"), "4:31", "inventories.additional has to be a list"),
        (provider(rest="inventories: {additional: [x]}"), "4:32", "an inventory has to be a mapping"),
        pytest.param(
            inventory("{}"), "4:43", "'total' is missing", marks=pytest.mark.capability("PC-6", "PC-12")
        ),
        (inventory("5"), "4:43", "the inventory of CUSTOM_A has to be a mapping, not 5"),
        (inventory("{total: '5'}"), "4:51", "total is '5'; it has to be a whole number"),
        (inventory("{total: true}"), "4:51", "total is True; it has to be a whole number"),
        (inventory("{total: 1.5}"), "4:51", "has to be a whole number"),
        (inventory("{total: 0}"), "4:51", "has to be 1 to 2147483647"),
        (inventory("{total: 2147483648}"), "4:51", "has to be 1 to 2147483647"),
        (inventory("{total: 1, reserved: -1}"), "4:64", "reserved is -1; it has to be 0 to"),
        (inventory("{total: 1, reserved: 2}"), "4:64", "2 of CUSTOM_A are reserved, and there are 1"),
        (inventory("{total: 1, min_unit: 0}"), "4:64", "min_unit is 0"),
        (inventory("{total: 1, max_unit: x}"), "4:64", "max_unit is 'x'"),
        (inventory("{total: 1, step_size: null}"), "4:65", "step_size is None"),
        (
            inventory("{total: 1, allocation_ratio: x}"),
            "4:72",
            "allocation_ratio is 'x'; it has to be a number",
        ),
        (inventory("{total: 1, allocation_ratio: .nan}"), "4:72", "above 0 and finite"),
        (inventory("{total: 1, allocation_ratio: .inf}"), "4:72", "above 0 and finite"),
        (inventory("{total: 1, allocation_ratio: 0}"), "4:72", "above 0 and finite"),
        (inventory("{total: 1, allocation_ratio: 1.0e+39}"), "4:72", "above 0 and finite"),
        (inventory("{total: 1, allocation_ratio: yes}"), "4:72", "has to be a number"),
        (inventory("{total: 1, other: 1}"), "4:61", "an inventory has no 'other'"),
        (
            provider(rest="inventories: {additional: [{CUSTOM_A: {total: 1}}, {CUSTOM_A: {total: 2}}]}"),
            "4:67",
            "the inventory of CUSTOM_A is given twice",
        ),
        (
            provider(rest="inventories: {additional: [{CUSTOM-A: {total: 1}}]}"),
            "4:43",
            "'CUSTOM-A' is no name",
        ),
        (provider(rest=f"inventories: {{additional: [{{C{'X' * 255}: {{}}}}]}}"), "4:291", "is no name"),
        # traits (PC-7), and what is not the operator's (PC-8)
        (provider(rest="traits: x"), "4:13", "traits has to be a mapping"),
        (provider(rest="traits: {additional: x}"), "4:26", "traits.additional has to be a list"),
        (provider(rest="traits: {additional: [1]}"), "4:27", "1 is no trait"),
        pytest.param(
            provider(rest="traits: {additional: [CUSTOM_a]}"),
            "4:27",
            "'CUSTOM_a' is no name",
            marks=pytest.mark.capability("PC-7"),
        ),
        (provider(rest="traits: {additional: ['']}"), "4:27", "'' is no name"),
        pytest.param(
            provider(rest="traits: {additional: [CUSTOM_A, HW_B, COMPUTE_C]}"),
            "4:37",
            "only what begins with CUSTOM_ can be added, not COMPUTE_C, HW_B",
            marks=pytest.mark.capability("PC-8"),
        ),
        (
            provider(rest="{inventories: {additional: [{VCPU: {total: 1}}]}, traits: {additional: [A]}}")
            .replace("    {inv", "    inv")
            .replace(", traits: ", "\n    traits: ")
            .replace("]}}", "]}"),
            "4:39",
            "not A, VCPU",
        ),
    ],
)
def test_what_is_wrong_is_pointed_at(text: str, where: str, words: str) -> None:
    with pytest.raises(Failed) as caught:
        parse("/etc/x.yaml", text.encode())
    message = str(caught.value)
    assert message.startswith(f"/etc/x.yaml:{where}: "), message
    assert words in message


def test_a_file_that_is_not_utf_8() -> None:
    with pytest.raises(Failed, match=r"^f:2:4: this is not UTF-8$"):
        parse("f", "a: 1\nä: ".encode() + b"\xff")


def test_what_is_merged_goes_behind_what_is_there() -> None:
    text = META + "x: &x {total: 1, reserved: 1}\n" + inventory("{<<: *x, total: 7}").removeprefix(META)
    assert parse("f", text.encode())[0].inventories == {"CUSTOM_A": {"total": 7, "reserved": 1}}


@pytest.mark.capability("PC-3")
def test_a_newer_minor_version_is_told_of_and_taken() -> None:
    with capture_logs() as logs:
        found = parse("f", provider().replace("1.0", "1.7").encode())
    assert [each.uuid for each in found] == [UUID]
    assert [(each["log_level"], each["version"]) for each in logs] == [("warning", "1.7")]
    with capture_logs() as logs:
        parse("f", provider().encode())
    assert logs == []


@pytest.mark.capability("PC-9")
@pytest.mark.parametrize(
    "rest", ["x: 1", "traits: {}", "traits: {additional: []}", "inventories: {additional: [{}]}"]
)
def test_a_provider_to_which_nothing_is_added_is_dropped(rest: str) -> None:
    with capture_logs() as logs:
        assert parse("f", provider(rest=rest).encode()) == []
    assert [(each["log_level"], each["provider"]) for each in logs] == [("warning", f"uuid '{UUID}'")]


# ---- directories ----


@pytest.mark.capability("PC-1")
def test_all_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(provider("name: b"))
    (tmp_path / "a.yaml").write_text(provider("name: a"))
    (tmp_path / "c.yml").write_text("[")
    (tmp_path / "README").write_text("[")
    assert [each.name for each in load(tmp_path)] == ["a", "b"]
    assert load(tmp_path)[0].source == str(tmp_path / "a.yaml")


@pytest.mark.capability("PC-1")
@pytest.mark.parametrize("there", [True, False])
def test_without_files_there_is_nothing_and_it_is_said(tmp_path: Path, there: bool) -> None:
    with capture_logs() as logs:
        assert load(tmp_path if there else tmp_path / "none") == ()
    assert [each["log_level"] for each in logs] == ["info"]


@pytest.mark.capability("PC-10")
def test_a_provider_that_two_files_configure(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(provider(f"uuid: {UUID}"))
    (tmp_path / "b.yaml").write_text(provider(f"uuid: {UUID.upper()}"))
    with pytest.raises(Failed, match=rf"uuid '{UUID}' is configured twice, in .*/a\.yaml and .*/b\.yaml\.$"):
        load(tmp_path)


@pytest.mark.capability("PC-10")
def test_a_provider_that_one_file_configures_twice(tmp_path: Path) -> None:
    twice = provider("name: x") + provider("name: x").partition("providers:\n")[2]
    (tmp_path / "a.yaml").write_text(twice)
    with pytest.raises(Failed, match=r"name 'x' is configured twice, in [^ ]*/a\.yaml\.$"):
        load(tmp_path)


@pytest.mark.capability("PC-2", "PC-12")
def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    with pytest.raises(Failed, match=r"a\.yaml: the provider configuration cannot be read: Is a directory"):
        load(tmp_path)
    with pytest.raises(Failed, match="cannot be read: Not a directory"):
        load(Path(os.devnull))


# ---- whatever may come ----


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse("f", text.encode("utf-8", "surrogatepass"))
    except Failed as error:
        assert str(error).startswith("f:")


_NAMES = st.from_regex(r"CUSTOM_[A-Z0-9_]{1,20}", fullmatch=True)
_RECORDS = st.fixed_dictionaries(
    {"total": st.integers(5, 2**31 - 1)},
    optional={
        "reserved": st.integers(0, 5),
        "max_unit": st.integers(1, 2**31 - 1),
        "allocation_ratio": st.floats(0.1, 100),
    },
)
_PROVIDERS = st.fixed_dictionaries(
    {
        "identification": st.one_of(
            st.fixed_dictionaries({"uuid": st.uuids().map(str)}),
            st.fixed_dictionaries({"name": st.text("abcäß: -#'\"{}", min_size=1, max_size=20)}),
        ),
        "inventories": st.fixed_dictionaries(
            {
                "additional": st.dictionaries(_NAMES, _RECORDS, min_size=1, max_size=2).map(
                    lambda found: [found]
                )
            }
        ),
        "traits": st.fixed_dictionaries({"additional": st.lists(_NAMES, max_size=3)}),
    }
)


@settings(max_examples=30)
@given(st.lists(_PROVIDERS, max_size=3))
def test_what_was_written_is_read(providers: list[dict[str, dict[str, object]]]) -> None:
    document = {"meta": {"schema_version": "1.0"}, "providers": providers}
    found = parse("f", yaml.safe_dump(document, allow_unicode=True).encode())
    assert [{"uuid": each.uuid} if each.uuid else {"name": each.name} for each in found] == [
        each["identification"] for each in providers
    ]
    assert [[each.inventories] for each in found] == [each["inventories"]["additional"] for each in providers]


_DAMAGE = st.one_of(
    st.none(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=2), st.booleans()
)


@settings(max_examples=50)
@given(_PROVIDERS, st.data())
def test_one_damaged_place_is_read_or_pointed_at(entry: dict[str, object], data: st.DataObject) -> None:
    document: dict[str, object] = {"meta": {"schema_version": "1.0"}, "providers": [entry]}
    place: object = document
    while True:
        keys = list(place.keys()) if isinstance(place, dict) else list(range(len(place)))  # type: ignore[arg-type]
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        below = place[key]  # type: ignore[index]
        if not isinstance(below, (dict, list)) or not below or data.draw(st.booleans()):
            place[key] = data.draw(_DAMAGE)  # type: ignore[index]
            break
        place = below
    try:
        parse("f", yaml.safe_dump(document).encode())
    except Failed as error:
        assert str(error).startswith("f:")
