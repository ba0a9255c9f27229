"""Whatever a client sends, it is understood or refused: no body and no query makes anything else happen."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from kilonova.db.images import StoredImage
from kilonova.errors import Refused
from kilonova.services.image import filters, patch
from kilonova.services.image.fields import CONTAINERS, SETTABLE, VISIBILITIES, parse_new
from kilonova.services.image.inspect import FORMATS
from tests.unit.image.conftest import ADMIN, ALICE

NAMES = st.sampled_from([*SETTABLE, "id", "status", "locations", "kernel_id", "own", "a/b", ""]) | st.text()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["a\0b", "\ud800", *VISIBILITIES, *FORMATS, *CONTAINERS, "in:", "gt:1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(NAMES, VALUES, max_size=5), st.sampled_from([ALICE, ADMIN]))
def test_any_document_makes_a_sound_image_or_is_refused(document: dict[str, object], who: object) -> None:
    try:
        new = parse_new(document, who)  # type: ignore[arg-type]
    except Refused:
        return
    assert new.visibility in VISIBILITIES
    assert new.disk_format in (None, *FORMATS)
    for text in (new.name or "", *new.tags, *new.properties, *new.properties.values()):
        text.encode()
        assert "\0" not in text
    assert new.visibility != "public" or who is ADMIN


OPERATIONS = st.fixed_dictionaries(
    {},
    optional={
        "op": st.sampled_from(["add", "replace", "remove", "test"]),
        "path": st.text(),
        "value": VALUES,
    },
) | st.builds(
    lambda op, name, value: {
        "op": op,
        "path": "/" + name.replace("~", "~0").replace("/", "~1"),
        "value": value,
    },
    st.sampled_from(["add", "replace", "remove"]),
    NAMES,
    VALUES,
)


@given(st.lists(OPERATIONS, max_size=4), st.sampled_from(patch.MEDIA_TYPES))
def test_any_patch_gives_a_sound_image_or_is_refused(operations: list[object], media_type: str) -> None:
    image = StoredImage(id="i", name="n", owner="alice", properties={"own": "x"})
    try:
        changed = patch.applied(image, patch.parse(json.dumps(operations).encode(), media_type), ALICE)
    except Refused:
        return
    assert (changed.id, changed.owner, changed.status) == ("i", "alice", "queued")
    assert changed.visibility in ("private", "shared", "community")
    assert not {"status", "locations", "id"} & set(changed.properties)
    assert all(isinstance(value, str) for value in changed.properties.values())


@given(st.binary(max_size=200))
def test_any_bytes_are_no_patch_or_are_one(body: bytes) -> None:
    try:
        patch.parse(body, patch.V2_1)
    except Refused:
        return
    assert isinstance(json.loads(body), list)


KEYS = st.sampled_from(
    ["limit", "sort", "sort_key", "sort_dir", "name", "id", "status", "created_at", "tag", "size_min", "own"]
)
TEXTS = st.text() | st.sampled_from(
    ["in:a,b", 'in:"', "gt:2020-01-01", "name:asc", "asc", "25", "0001-01-01T00:00+09:00"]
)


@given(st.lists(st.tuples(KEYS | st.text(), TEXTS), max_size=4))
def test_any_query_is_understood_or_refused(items: list[tuple[str, str]]) -> None:
    try:
        asked = filters.parse(items, ALICE)
    except Refused:
        return
    assert 0 <= asked.query.limit <= filters.MAX_LIMIT
    assert {"created_at", "id"} <= {each.key for each in asked.query.sorts}
