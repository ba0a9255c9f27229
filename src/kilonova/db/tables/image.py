"""Tables of image: images and whom they are shared with."""

from __future__ import annotations

from sqlalchemy import Index, PrimaryKeyConstraint, Table

from kilonova.db.tables import flag, json_text, metadata, number, text

images = Table(
    "images",
    metadata,
    text("id", primary_key=True),
    text("name", nullable=True),
    text("owner", nullable=True),
    # "queued", "saving", "active", "deactivated"; "deleted" until its data are gone
    text("status"),
    text("visibility"),
    text("disk_format", nullable=True),
    text("container_format", nullable=True),
    number("size", nullable=True),
    number("virtual_size", nullable=True),
    text("checksum", nullable=True),
    text("hash_algo", nullable=True),
    text("hash_value", nullable=True),
    number("min_disk"),
    number("min_ram"),
    flag("protected"),
    flag("hidden"),
    json_text("tags"),
    json_text("properties"),
    # names the upload that is under way: only that one may finish it
    text("upload", nullable=True),
    number("created_at"),
    number("updated_at"),
    Index("images_by_age", "created_at", "id"),
    Index("images_by_owner", "owner", "created_at"),
    Index("images_by_name", "name"),
    Index("images_by_status", "status"),
)

image_members = Table(
    "image_members",
    metadata,
    text("image_id"),
    text("member"),
    text("status"),  # "pending", "accepted", "rejected"
    number("created_at"),
    number("updated_at"),
    PrimaryKeyConstraint("image_id", "member"),
    Index("image_members_by_member", "member", "status"),
)
