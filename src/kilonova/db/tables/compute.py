"""Tables of compute: servers, hosts, flavors, key pairs, quotas."""

from __future__ import annotations

from sqlalchemy import Index, PrimaryKeyConstraint, Table, UniqueConstraint, literal_column

from kilonova.db.tables import flag, json_text, metadata, number, real, serial, text

_BUSY = literal_column("task_state").is_not(None) & literal_column("deleted_at").is_(None)
_LEAVING = literal_column("leaving").is_not(None)

instances = Table(
    "instances",
    metadata,
    serial(),
    text("uuid", unique=True),
    number("version"),
    text("project_id"),
    text("user_id"),
    text("reservation_id"),
    number("launch_index"),
    text("display_name"),
    text("display_description", nullable=True),
    text("hostname"),
    text("vm_state"),
    text("task_state", nullable=True),
    number("power_state"),
    number("power_generation"),
    number("progress"),
    text("host", nullable=True),
    text("node", nullable=True),
    text("availability_zone", nullable=True),
    text("pinned_availability_zone", nullable=True),
    json_text("flavor"),
    json_text("image", nullable=True),
    text("key_name", nullable=True),
    text("key_data", nullable=True),
    text("user_data", nullable=True),
    flag("config_drive"),
    text("locked", nullable=True),
    text("locked_reason", nullable=True),
    text("access_ip_v4", nullable=True),
    text("access_ip_v6", nullable=True),
    text("root_device_name", nullable=True),
    json_text("metadata"),
    json_text("system_metadata"),
    json_text("tags"),
    json_text("hints"),
    json_text("security_groups"),
    json_text("vifs"),
    json_text("volumes"),
    json_text("fault", nullable=True),
    number("created_at"),
    number("updated_at", nullable=True),
    number("launched_at", nullable=True),
    number("terminated_at", nullable=True),
    number("deleted_at", nullable=True),
    number("residence"),  # how often it has changed its cell
    text("leaving", nullable=True),  # the cell for which it is leaving this one: nobody changes it meanwhile
    Index("instances_by_project", "project_id", "deleted_at", "created_at"),
    Index("instances_by_age", "deleted_at", "created_at"),
    Index("instances_by_host", "host", "deleted_at"),
    # those with which something is going on: few at any time
    Index("instances_by_task", "host", sqlite_where=_BUSY, postgresql_where=_BUSY),
    Index("instances_leaving", "leaving", sqlite_where=_LEAVING, postgresql_where=_LEAVING),
)

hosts = Table(
    "hosts",
    metadata,
    serial(),
    text("service_uuid", unique=True),
    text("compute_id", unique=True),
    text("host", unique=True),
    text("hypervisor_hostname"),
    text("hypervisor_type"),
    number("hypervisor_version"),
    text("host_ip"),
    text("availability_zone", nullable=True),
    text("cell_uuid", nullable=True),  # null: the first cell
    flag("disabled"),
    text("disabled_reason", nullable=True),
    flag("forced_down"),
    number("last_seen_at"),
    number("report_count"),
    number("created_at"),
    number("updated_at", nullable=True),
    json_text("cpu_info"),
    json_text("details"),
    number("started_at"),
    text("session"),
    text("version"),
    json_text("metrics"),
    number("failed_builds"),
    text("boot_id"),
    number("booted_at"),
    # by the database's clock, when anything but a heartbeat was written, and how often: for views in memory
    number("changed_at"),
    number("revision"),
    Index("hosts_by_change", "changed_at"),
)

aggregates = Table(
    "aggregates",
    metadata,
    serial(),
    text("uuid", unique=True),
    text("name", unique=True),
    text("availability_zone", nullable=True),
    json_text("metadata"),
    number("created_at"),
    number("updated_at", nullable=True),
)

aggregate_hosts = Table(
    "aggregate_hosts",
    metadata,
    number("aggregate_id"),
    text("host"),
    PrimaryKeyConstraint("aggregate_id", "host"),
    Index("aggregate_hosts_by_host", "host"),
)

flavors = Table(
    "flavors",
    metadata,
    serial(),
    text("flavorid", unique=True),
    text("name", unique=True),
    number("vcpus"),
    number("memory_mb"),
    number("root_gb"),
    number("ephemeral_gb"),
    number("swap_mb"),
    real("rxtx_factor"),
    flag("is_public"),
    flag("disabled"),
    text("description", nullable=True),
    json_text("extra_specs"),
    json_text("projects"),
    number("created_at"),
    number("updated_at", nullable=True),
)

keypairs = Table(
    "keypairs",
    metadata,
    serial(),
    text("user_id"),
    text("name"),
    text("type"),
    text("fingerprint"),
    text("public_key"),
    number("created_at"),
    number("updated_at", nullable=True),
    UniqueConstraint("user_id", "name"),
)

quota_limits = Table(
    "quota_limits",
    metadata,
    # scope "class" (name "default"), "project" (its id) or "user" ("project/user")
    text("scope"),
    text("name"),
    text("resource"),
    number("hard_limit"),
    PrimaryKeyConstraint("scope", "name", "resource"),
)

quota_usages = Table(
    "quota_usages",
    metadata,
    # changed in the same transaction as the servers that it counts
    text("project_id"),
    text("user_id"),
    number("instances"),
    number("cores"),
    number("ram"),
    PrimaryKeyConstraint("project_id", "user_id"),
)
