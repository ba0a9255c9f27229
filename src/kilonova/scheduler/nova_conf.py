"""The scheduler's options, by the names and defaults of nova.conf."""

from __future__ import annotations

from oslo_config import cfg

ALL_FILTERS = "nova.scheduler.filters.all_filters"
ALL_WEIGHERS = "nova.scheduler.weights.all_weighers"

SCHEDULER = [
    cfg.IntOpt("max_attempts", default=3, min=1),
    cfg.IntOpt("max_placement_results", default=1000, min=1),
    cfg.BoolOpt("limit_tenants_to_placement_aggregate", default=False),
    cfg.BoolOpt("placement_aggregate_required_for_tenants", default=False),
    cfg.BoolOpt("query_placement_for_image_type_support", default=False),
    cfg.BoolOpt("enable_isolated_aggregate_filtering", default=False),
    cfg.BoolOpt("image_metadata_prefilter", default=False),
]
FILTER_SCHEDULER = [
    cfg.IntOpt("host_subset_size", default=1, min=1),
    cfg.IntOpt("max_io_ops_per_host", default=8, min=0),
    cfg.IntOpt("max_instances_per_host", default=50, min=1),
    cfg.BoolOpt(
        "track_instance_changes",
        default=True,
        help="Know how many servers and heavy operations each host has; without it those filters see none.",
    ),
    cfg.MultiStrOpt(
        "available_filters",
        default=[ALL_FILTERS],
        help=f"{ALL_FILTERS}, filters of Nova by their full names, or module.NAME of a Filter of your own.",
    ),
    cfg.ListOpt(
        "enabled_filters",
        default=[
            "ComputeFilter",
            "ComputeCapabilitiesFilter",
            "ImagePropertiesFilter",
            "ServerGroupAntiAffinityFilter",
            "ServerGroupAffinityFilter",
        ],
    ),
    cfg.ListOpt("weight_classes", default=[ALL_WEIGHERS]),
    cfg.FloatOpt("ram_weight_multiplier", default=1.0),
    cfg.FloatOpt("cpu_weight_multiplier", default=1.0),
    cfg.FloatOpt("disk_weight_multiplier", default=1.0),
    cfg.FloatOpt("hypervisor_version_weight_multiplier", default=1.0),
    cfg.FloatOpt("num_instances_weight_multiplier", default=0.0),
    cfg.FloatOpt("io_ops_weight_multiplier", default=-1.0),
    cfg.FloatOpt("image_props_weight_multiplier", default=0.0),
    cfg.ListOpt("image_props_weight_setting", default=[], help="Names with weights: os_distro=2,os_type=1"),
    cfg.FloatOpt("pci_weight_multiplier", default=1.0, min=0.0),
    cfg.FloatOpt("soft_affinity_weight_multiplier", default=1.0, min=0.0),
    cfg.FloatOpt("soft_anti_affinity_weight_multiplier", default=1.0, min=0.0),
    cfg.FloatOpt("build_failure_weight_multiplier", default=1000000.0),
    cfg.FloatOpt("cross_cell_move_weight_multiplier", default=1000000.0),
    cfg.BoolOpt("shuffle_best_same_weighed_hosts", default=False),
    cfg.StrOpt("image_properties_default_architecture"),
    cfg.ListOpt("isolated_images", default=[]),
    cfg.ListOpt("isolated_hosts", default=[]),
    cfg.BoolOpt("restrict_isolated_hosts_to_isolated_images", default=True),
    cfg.StrOpt("aggregate_image_properties_isolation_namespace"),
    cfg.StrOpt("aggregate_image_properties_isolation_separator", default="."),
]
METRICS = [
    cfg.FloatOpt("weight_multiplier", default=1.0),
    cfg.ListOpt("weight_setting", default=[], help="Names of metrics with weights: cpu.frequency=1.0"),
    cfg.BoolOpt("required", default=True),
    cfg.FloatOpt("weight_of_unavailable", default=-10000.0),
]
