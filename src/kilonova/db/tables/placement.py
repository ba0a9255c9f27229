"""Tables of placement: who provides what, and who holds how much of it.

``inventories.used`` is always the sum of the allocations of that provider and class: both change in one
transaction, and `kilonova.db.placement.audit` tells where that were ever not so.
"""

from __future__ import annotations

from sqlalchemy import Index, PrimaryKeyConstraint, Table

from kilonova.db.tables import flag, metadata, number, real, text

# ``revision`` counts every change of a provider and of all that is its own, also those that the API's
# generation does not tell of: views in memory are kept fresh by it.  It starts at random, so that a provider
# that is made anew is not taken for the old one.  ``reported``: made by what a host says of itself.
resource_providers = Table(
    "resource_providers",
    metadata,
    text("uuid", primary_key=True),
    text("name", unique=True),
    number("generation"),
    text("parent", nullable=True),
    text("root"),
    number("revision"),
    number("changed_at"),  # by the database's clock: when ``revision`` rose
    flag("reported"),
    Index("resource_providers_by_root", "root"),
    Index("resource_providers_by_parent", "parent"),
    Index("resource_providers_by_change", "changed_at"),
)

inventories = Table(
    "inventories",
    metadata,
    text("provider"),
    text("resource_class"),
    number("total"),
    number("reserved"),
    number("min_unit"),
    number("max_unit"),
    number("step_size"),
    real("allocation_ratio"),
    number("used"),
    PrimaryKeyConstraint("provider", "resource_class"),
)

# A consumer is here as long as it has allocations, and no longer.
consumers = Table(
    "consumers",
    metadata,
    text("uuid", primary_key=True),
    number("generation"),
    text("project_id"),
    text("user_id"),
    text("consumer_type", nullable=True),
    Index("consumers_by_project", "project_id", "user_id"),
)

allocations = Table(
    "allocations",
    metadata,
    text("consumer"),
    text("provider"),
    text("resource_class"),
    number("amount"),
    PrimaryKeyConstraint("consumer", "provider", "resource_class"),
    Index("allocations_by_provider", "provider", "resource_class"),
)

provider_traits = Table(
    "provider_traits",
    metadata,
    text("provider"),
    text("trait"),
    PrimaryKeyConstraint("provider", "trait"),
    Index("provider_traits_by_trait", "trait"),
)

provider_aggregates = Table(
    "provider_aggregates",
    metadata,
    text("provider"),
    text("aggregate"),
    PrimaryKeyConstraint("provider", "aggregate"),
    Index("provider_aggregates_by_aggregate", "aggregate"),
)

# Names beside the standard ones, which are in kilonova.services.placement.names.
custom_traits = Table("custom_traits", metadata, text("name", primary_key=True))
custom_resource_classes = Table("custom_resource_classes", metadata, text("name", primary_key=True))
