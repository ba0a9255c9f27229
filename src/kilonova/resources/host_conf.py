"""The options of a compute host's resources, by the names and defaults of nova.conf."""

from __future__ import annotations

from oslo_config import cfg, types

HOST = [
    cfg.FloatOpt("cpu_allocation_ratio", min=0.0, help="Unset or 0: what placement has, see initial_*."),
    cfg.FloatOpt("ram_allocation_ratio", min=0.0),
    cfg.FloatOpt("disk_allocation_ratio", min=0.0),
    cfg.FloatOpt("initial_cpu_allocation_ratio", default=4.0, min=0.0, help="Of a host that is new."),
    cfg.FloatOpt("initial_ram_allocation_ratio", default=1.0, min=0.0),
    cfg.FloatOpt("initial_disk_allocation_ratio", default=1.0, min=0.0),
    cfg.IntOpt("reserved_host_memory_mb", default=512, min=0),
    cfg.IntOpt("reserved_host_disk_mb", default=0, min=0),
    cfg.IntOpt("reserved_host_cpus", default=0, min=0),
    cfg.MultiOpt(
        "reserved_huge_pages",
        item_type=types.Dict(),
        help="node:0,size:2048,count:64 keeps 64 pages of 2048 KiB in the NUMA cell 0 from guests.",
    ),
    cfg.ListOpt("compute_monitors", default=[], help="Monitors by name, e.g. cpu.virt_driver."),
    cfg.IntOpt(
        "update_resources_interval",
        default=0,
        help="Seconds between looks at what the host has; 0: every minute, negative: never.",
    ),
]
COMPUTE = [
    cfg.BoolOpt(
        "live_migration_wait_for_vif_plug",
        default=True,
        help="Guests come to this host only when their ports are wired here.",
    ),
    cfg.StrOpt("cpu_shared_set", help="CPUs for floating guest CPUs: 0-3,^2,8."),
    cfg.StrOpt("cpu_dedicated_set", help="CPUs for pinned guest CPUs."),
    cfg.StrOpt("provider_config_location", default="/etc/nova/provider_config/"),
    cfg.IntOpt(
        "resource_provider_association_refresh",
        default=300,
        min=0,
        help="Seconds after which all is told again, changed or not, which mends what others have changed in "
        "placement; 0: never.",
    ),
]
PCI = [
    cfg.MultiStrOpt(
        "device_spec",
        default=[],
        deprecated_name="passthrough_whitelist",
        help="JSON: the devices that guests may have.",
    ),
    cfg.BoolOpt("report_in_placement", default=False, help="Devices are resource providers, too."),
]
NEUTRON = [cfg.ListOpt("physnets", default=[], help="Networks with a group [neutron_physnet_NAME].")]
TUNNEL = [cfg.ListOpt("numa_nodes", default=[], item_type=types.Integer(min=0))]
FAKE = [
    cfg.StrOpt("numa_cells", default="", help="JSON: HostCells that the fake host has."),
    cfg.StrOpt("pci_devices", default="", help="JSON: PciDevices that the fake host has."),
    cfg.StrOpt("inventories", default="", help='JSON: more of the fake host, {"CUSTOM_X": {"total": 5}}.'),
    cfg.StrOpt("items", default="", help="JSON: Items that its providers list one by one, provider by name."),
    cfg.StrOpt("providers", default="", help="JSON: nested ProviderReports of the fake host."),
]


def physnet(name: str) -> tuple[str, list[cfg.Opt]]:
    """The group of a physical network, which has the options of ``TUNNEL``."""
    return f"neutron_physnet_{name}", TUNNEL


LIVE_MIGRATION = [
    cfg.StrOpt("live_migration_uri", help="libvirtd of a destination, %s its address; default: by scheme."),
    cfg.StrOpt("live_migration_scheme", default="tcp", choices=("tcp", "tls", "ssh", "unix")),
    cfg.BoolOpt("live_migration_tunnelled", default=False, help="Through libvirtd; without disks."),
    cfg.BoolOpt("live_migration_with_native_tls", default=False),
    cfg.IntOpt("live_migration_bandwidth", default=0, min=0, help="MiB a second; 0: no limit."),
    cfg.IntOpt("live_migration_downtime", default=500, min=100, help="Milliseconds at most."),
    cfg.IntOpt("live_migration_downtime_steps", default=10, min=3),
    cfg.IntOpt("live_migration_downtime_delay", default=75, min=3, help="Seconds a GiB between the steps."),
    cfg.IntOpt("live_migration_completion_timeout", default=800, min=0, help="Seconds a GiB; 0: no limit."),
    cfg.StrOpt("live_migration_timeout_action", default="abort", choices=("abort", "force_complete")),
    cfg.BoolOpt("live_migration_permit_post_copy", default=False),
    cfg.BoolOpt("live_migration_permit_auto_converge", default=False),
    cfg.BoolOpt(
        "live_migration_unsafe",
        default=False,
        help="Migrate although libvirt does not know the directory of guests as shared (VIR_MIGRATE_UNSAFE).",
    ),
]
