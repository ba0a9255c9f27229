"""Images and the projects they are shared with.  Lists of images are in ``image_listing``."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, select, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.image import image_members, images

DELETED = "deleted"


class StoredImage(msgspec.Struct, frozen=True, kw_only=True):
    """One row of ``images``.

    ``membership`` is the state of the sharing with the project that reads, None if it is not shared with
    it.  ``size`` and what follows from the data are None until there are data.
    """

    id: str
    name: str | None = None
    owner: str | None = None
    status: str = "queued"
    visibility: str = "shared"
    disk_format: str | None = None
    container_format: str | None = None
    size: int | None = None
    virtual_size: int | None = None
    checksum: str | None = None
    hash_algo: str | None = None
    hash_value: str | None = None
    min_disk: int = 0
    min_ram: int = 0
    protected: bool = False
    hidden: bool = False
    tags: tuple[str, ...] = ()
    properties: dict[str, str] = {}
    upload: str | None = None
    created_at: int = 0
    updated_at: int = 0
    membership: str | None = None


class StoredMember(msgspec.Struct, frozen=True, kw_only=True):
    """A project that an image is shared with."""

    image_id: str
    member: str
    status: str
    created_at: int
    updated_at: int


_FIELDS = tuple(column.name for column in images.columns)
_TAGS = _FIELDS.index("tags")
_PROPERTIES = _FIELDS.index("properties")
_PROTECTED = _FIELDS.index("protected")

_decode_tags = msgspec.json.Decoder(tuple[str, ...]).decode
_decode_properties = msgspec.json.Decoder(dict[str, str]).decode
_encode = msgspec.json.Encoder().encode

own_membership = (
    select(image_members.c.status)
    .where(image_members.c.image_id == images.c.id, image_members.c.member == bindparam("project"))
    .scalar_subquery()
)

SHOW = Statement(
    select(images, own_membership).where(images.c.id == bindparam("id"), images.c.status != DELETED)
)
LOCK = Statement(
    select(images, own_membership).where(images.c.id == bindparam("id")).with_for_update(of=images)
)
INSERT = insert_into(images)
UPDATE = Statement(
    update(images)
    .values({name: bindparam(name) for name in _FIELDS if name != "id"})
    .where(images.c.id == bindparam("image_id"))
)
DELETE = Statement(delete(images).where(images.c.id == bindparam("image_id")))
LEFT = Statement(select(images).where(images.c.status.in_(("saving", DELETED))).order_by(images.c.id))
NAMED = Statement(
    select(images)
    .where(
        images.c.name == bindparam("name"),
        images.c.visibility == "public",
        images.c.status == "active",
    )
    .order_by(images.c.created_at, images.c.id)
    .limit(1)
)
MEMBERS = Statement(
    select(image_members)
    .where(image_members.c.image_id == bindparam("image_id"))
    .order_by(image_members.c.created_at, image_members.c.member)
)
MEMBER = Statement(
    select(image_members).where(
        image_members.c.image_id == bindparam("image_id"), image_members.c.member == bindparam("member")
    )
)
COUNT_MEMBERS = Statement(
    select(func.count()).select_from(image_members).where(image_members.c.image_id == bindparam("image_id"))
)
INSERT_MEMBER = insert_into(image_members)
UPDATE_MEMBER = Statement(
    update(image_members)
    .values(status=bindparam("status"), updated_at=bindparam("updated_at"))
    .where(
        image_members.c.image_id == bindparam("of_image"), image_members.c.member == bindparam("of_member")
    )
)
DELETE_MEMBER = Statement(
    delete(image_members).where(
        image_members.c.image_id == bindparam("of_image"), image_members.c.member == bindparam("of_member")
    )
)
DELETE_MEMBERS = Statement(delete(image_members).where(image_members.c.image_id == bindparam("of_image")))


def from_row(row: Row) -> StoredImage:
    """A row of all columns of ``images``, and perhaps the reader's membership after them."""
    values: dict[str, Any] = dict(zip(_FIELDS, row, strict=False))
    values["tags"] = _decode_tags(row[_TAGS])
    values["properties"] = _decode_properties(row[_PROPERTIES])
    values["protected"] = bool(row[_PROTECTED])
    values["hidden"] = bool(row[_PROTECTED + 1])
    if len(row) > len(_FIELDS):
        values["membership"] = row[len(_FIELDS)]
    return StoredImage(**values)


def _values(image: StoredImage) -> dict[str, Any]:
    values = {name: getattr(image, name) for name in _FIELDS}
    values["tags"] = _encode(image.tags).decode()
    values["properties"] = _encode(image.properties).decode()
    return values


def show(tx: Tx, image_id: str, project: str | None) -> StoredImage | None:
    """The image, with the membership of ``project`` in it; whether it may be seen is not asked here."""
    row = tx.one(SHOW, id=image_id, project=project)
    return None if row is None else from_row(row)


def lock(tx: Tx, image_id: str, project: str | None) -> StoredImage | None:
    """The image, to be changed in this transaction; also one that is being deleted."""
    row = tx.one(LOCK, id=image_id, project=project)
    return None if row is None else from_row(row)


def add(tx: Tx, image: StoredImage) -> None:
    """Raises UniqueViolation when the id is taken."""
    tx.run(INSERT, **_values(image))


def save(tx: Tx, image: StoredImage) -> None:
    values = _values(image)
    values["image_id"] = values.pop("id")
    tx.run(UPDATE, **values)


def remove(tx: Tx, image_id: str) -> None:
    """Forget the image and whom it was shared with."""
    tx.run(DELETE_MEMBERS, of_image=image_id)
    tx.run(DELETE, image_id=image_id)


def left_behind(tx: Tx) -> list[StoredImage]:
    """Images whose upload or deletion has not ended."""
    return [from_row(row) for row in tx.all(LEFT)]


def public_by_name(tx: Tx, name: str) -> StoredImage | None:
    """The oldest active public image of that name."""
    row = tx.one(NAMED, name=name)
    return None if row is None else from_row(row)


def members(tx: Tx, image_id: str) -> list[StoredMember]:
    return [_member(row) for row in tx.all(MEMBERS, image_id=image_id)]


def member(tx: Tx, image_id: str, project: str) -> StoredMember | None:
    row = tx.one(MEMBER, image_id=image_id, member=project)
    return None if row is None else _member(row)


def count_members(tx: Tx, image_id: str) -> int:
    return int(tx.scalar(COUNT_MEMBERS, image_id=image_id))


def add_member(tx: Tx, new: StoredMember) -> None:
    """Raises UniqueViolation when it is one already."""
    tx.run(INSERT_MEMBER, **msgspec.structs.asdict(new))


def set_member_status(tx: Tx, image_id: str, project: str, status: str, now: int) -> None:
    tx.run(UPDATE_MEMBER, of_image=image_id, of_member=project, status=status, updated_at=now)


def remove_member(tx: Tx, image_id: str, project: str) -> bool:
    """False if it was none."""
    return tx.run(DELETE_MEMBER, of_image=image_id, of_member=project) > 0


def _member(row: Row) -> StoredMember:
    image_id, project, status, created_at, updated_at = row
    return StoredMember(
        image_id=image_id, member=project, status=status, created_at=created_at, updated_at=updated_at
    )
