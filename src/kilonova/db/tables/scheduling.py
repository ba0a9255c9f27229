"""Tables of what the scheduler goes by beside hosts: server groups, and what tells its views of changes."""

from __future__ import annotations

from sqlalchemy import Index, PrimaryKeyConstraint, Table

from kilonova.db.tables import json_text, metadata, number, serial, text

server_groups = Table(
    "server_groups",
    metadata,
    serial(),
    text("uuid", unique=True),
    text("project_id"),
    text("user_id"),
    text("name"),
    text("policy"),
    json_text("rules"),
    # counts every decision on a host for a member: changing it is the lock of the group
    number("version"),
    number("created_at"),
    Index("server_groups_by_project", "project_id", "user_id"),
)

server_group_members = Table(
    "server_group_members",
    metadata,
    number("group_id"),
    text("instance_uuid"),
    text("user_id"),
    PrimaryKeyConstraint("group_id", "instance_uuid"),
    Index("server_group_members_by_instance", "instance_uuid"),
)

# How often something has changed of which a reader of changes would not hear: what was removed, aggregates.
epochs = Table("epochs", metadata, text("subject", primary_key=True), number("number"))
