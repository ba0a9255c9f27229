"""Tables of volume: volumes, who has them, their types, and what projects may have."""

from __future__ import annotations

from sqlalchemy import Index, PrimaryKeyConstraint, Table

from kilonova.db.tables import flag, json_text, metadata, number, text

volumes = Table(
    "volumes",
    metadata,
    text("id", primary_key=True),
    text("project_id"),
    text("user_id"),
    text("name", nullable=True),
    text("description", nullable=True),
    number("size_gb"),
    # Cinder's words; "deleted" rows stay for a while, so that a file that comes late is known for what it is
    text("status"),
    text("type_id"),
    text("zone"),
    flag("bootable"),
    flag("multiattach"),
    json_text("metadata"),
    json_text("image_metadata", nullable=True),  # of the image that it was made from
    text("source_image", nullable=True),
    text("source_volume", nullable=True),
    # names the making that is under way: only that one may end it
    text("maker", nullable=True),
    number("growing_to", nullable=True),  # GiB, while it is "extending"
    text("fault", nullable=True),  # why it is in "error"
    number("created_at"),
    number("updated_at"),
    Index("volumes_by_age", "created_at", "id"),
    Index("volumes_by_project", "project_id", "created_at"),
    Index("volumes_by_status", "status"),
    Index("volumes_by_source", "source_volume"),
)

volume_attachments = Table(
    "volume_attachments",
    metadata,
    text("id", primary_key=True),
    text("volume_id"),
    text("instance_uuid"),
    text("status"),  # "reserved", "attaching", "attached"
    text("mode"),  # "rw", "ro"
    text("host", nullable=True),
    text("device", nullable=True),
    json_text("connection", nullable=True),
    number("created_at"),
    number("attached_at", nullable=True),
    Index("volume_attachments_by_volume", "volume_id"),
    Index("volume_attachments_by_instance", "instance_uuid"),
)

volume_types = Table(
    "volume_types",
    metadata,
    text("id", primary_key=True),
    text("name", unique=True),
    text("description", nullable=True),
    flag("is_public"),
    json_text("extra_specs"),
    number("created_at"),
    number("updated_at"),
)

volume_quotas = Table(
    "volume_quotas",
    metadata,
    text("project_id"),
    text("resource"),
    number("hard_limit"),
    PrimaryKeyConstraint("project_id", "resource"),
)

volume_usages = Table(
    "volume_usages",
    metadata,
    # changed in the same transaction as the volumes that it counts
    text("project_id"),
    text("resource"),
    number("used"),
    PrimaryKeyConstraint("project_id", "resource"),
)
