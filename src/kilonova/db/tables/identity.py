"""Tables of identity: domains, projects, users, groups, roles, who has which role where, and dead tokens.

``generation`` is counted up whenever all tokens of a user or for a project or a domain die at once; a token
carries the numbers that it was made under.  ``extra`` has the attributes that Keystone has no column for.
"""

from __future__ import annotations

from sqlalchemy import Index, PrimaryKeyConstraint, Table, UniqueConstraint

from kilonova.db.tables import flag, json_text, metadata, number, text

domains = Table(
    "identity_domains",
    metadata,
    text("id", primary_key=True),
    text("name", unique=True),
    text("description"),
    flag("enabled"),
    json_text("extra"),
    number("generation"),
)

projects = Table(
    "identity_projects",
    metadata,
    text("id", primary_key=True),
    text("name"),
    text("domain_id"),
    text("parent_id"),  # a project, or the domain
    text("description"),
    flag("enabled"),
    json_text("tags"),
    json_text("extra"),
    number("generation"),
    UniqueConstraint("domain_id", "name"),
    Index("identity_projects_by_parent", "parent_id"),
)

users = Table(
    "identity_users",
    metadata,
    text("id", primary_key=True),
    text("name"),
    text("domain_id"),
    text("default_project_id", nullable=True),
    flag("enabled"),
    json_text("extra"),
    text("password_hash", nullable=True),
    number("generation"),
    UniqueConstraint("domain_id", "name"),
)

groups = Table(
    "identity_groups",
    metadata,
    text("id", primary_key=True),
    text("name"),
    text("domain_id"),
    text("description"),
    json_text("extra"),
    UniqueConstraint("domain_id", "name"),
)

memberships = Table(
    "identity_memberships",
    metadata,
    text("group_id"),
    text("user_id"),
    PrimaryKeyConstraint("group_id", "user_id"),
    Index("identity_memberships_by_user", "user_id"),
)

roles = Table(
    "identity_roles",
    metadata,
    text("id", primary_key=True),
    text("name", unique=True),
    text("description", nullable=True),
    json_text("extra"),
)

implications = Table(
    "identity_implications",
    metadata,
    text("prior_role_id"),
    text("implied_role_id"),
    PrimaryKeyConstraint("prior_role_id", "implied_role_id"),
)

assignments = Table(
    "identity_assignments",
    metadata,
    text("actor_type"),  # "user", "group"
    text("actor_id"),
    text("target_type"),  # "project", "domain", "system"
    text("target_id"),  # "all" for the system
    text("role_id"),
    PrimaryKeyConstraint("actor_id", "actor_type", "target_type", "target_id", "role_id"),
    Index("identity_assignments_by_target", "target_id", "target_type"),
)

# What administrators add to the catalog that the configuration gives.
regions = Table(
    "identity_regions",
    metadata,
    text("id", primary_key=True),
    text("description"),
    text("parent_region_id", nullable=True),
)

services = Table(
    "identity_services",
    metadata,
    text("id", primary_key=True),
    text("type"),
    text("name"),
    text("description"),
    flag("enabled"),
)

endpoints = Table(
    "identity_endpoints",
    metadata,
    text("id", primary_key=True),
    text("service_id"),  # one of the above, or one of the configuration
    text("interface"),  # "public", "internal", "admin"
    text("region_id", nullable=True),
    text("url"),
    flag("enabled"),
    Index("identity_endpoints_by_service", "service_id"),
)

revocations = Table(
    "identity_revocations",
    metadata,
    text("audit_id", primary_key=True),
    number("expires_at"),
    Index("identity_revocations_by_end", "expires_at"),
)

# One row, counted up with every change of the above: other processes see by it that their caches are old.
revision = Table("identity_revision", metadata, number("id", primary_key=True), number("number"))
