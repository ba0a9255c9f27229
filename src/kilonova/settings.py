"""Options, by oslo.config: names of nova.conf where the meaning is the same.

``load`` reads a file and gives a frozen record; nothing else in the house knows oslo.config.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from oslo_config import cfg, types

from kilonova.model.instance import instance_name
from kilonova.resources import host_conf
from kilonova.scheduler.nova_conf import FILTER_SCHEDULER, METRICS, SCHEDULER

NOBODY = "00000000-0000-0000-0000-000000000000"


def _name_template(text: str) -> str:
    instance_name(text, 1, "00000000-0000-4000-8000-000000000000")
    return text


def _ports(text: str) -> str:
    first, dash, last = text.partition("-")
    if text and not (0 < int(first) <= int(last if dash else first) < 1 << 16):
        raise ValueError(f"'{text}' is no range of ports")
    return text


DEFAULT = [
    cfg.StrOpt("host", help="Name of this compute host; default: the machine's host name."),
    cfg.StrOpt("my_ip", default="127.0.0.1", help="Address of this host."),
    cfg.StrOpt("default_availability_zone", default="nova"),
    cfg.StrOpt("default_schedule_zone"),
    cfg.Opt(
        "instance_name_template",
        type=_name_template,
        default="%(uuid)s",
        help="Names of guests in the hypervisor; Nova's instance-%08x may meet other clouds' guests.",
    ),
    *host_conf.HOST,
    cfg.IntOpt("max_concurrent_builds", default=10),
    cfg.IntOpt(
        "max_concurrent_live_migrations",
        default=1,
        min=0,
        help="Guests that a host sends at a time; the others wait. 0: any number.",
    ),
    cfg.IntOpt(
        "migrate_max_retries",
        default=-1,
        min=-1,
        help="Hosts that are tried for a live migration after the first; -1: all.",
    ),
    cfg.IntOpt(
        "live_migration_retry_count",
        default=30,
        min=1,
        help="How often a port of a guest that comes live to this host is plugged, once a second, until that "
        "has failed.",
    ),
    cfg.IntOpt("shutdown_timeout", default=60, help="Seconds a guest has to shut itself down."),
    cfg.IntOpt("service_down_time", default=60),
    cfg.IntOpt("report_interval", default=10),
    cfg.IntOpt(
        "sync_power_state_interval",
        default=600,
        help="Seconds between looks at the power of all servers; negative: never.",
    ),
    cfg.BoolOpt(
        "resume_guests_state_on_host_boot",
        default=False,
        help="Guests that ran on this host when it went off are started again when it was booted; otherwise "
        "their servers are stopped.",
    ),
    cfg.IntOpt(
        "rpc_response_timeout",
        default=60,
        min=1,
        help="Seconds that a request whose answer needs a host waits for it.",
    ),
    cfg.IntOpt("vif_plugging_timeout", default=300),
    cfg.BoolOpt("vif_plugging_is_fatal", default=True),
    cfg.IntOpt("instance_build_timeout", default=600),
    cfg.BoolOpt(
        "allow_resize_to_same_host", default=False, help="A resize may choose the host that the server is on."
    ),
    cfg.IntOpt(
        "resize_confirm_window",
        default=0,
        min=0,
        help="Seconds after which a resize is confirmed if nobody has done so; 0: never.",
    ),
    cfg.IntOpt(
        "shelved_offload_time",
        default=0,
        min=-1,
        help="Seconds that a shelved server stays on its host; 0: it leaves at once, -1: never.",
    ),
    cfg.IntOpt(
        "shelved_poll_interval",
        default=3600,
        help="Seconds between looks for servers that have been shelved for that long; negative: never.",
    ),
    cfg.ListOpt(
        "non_inheritable_image_properties",
        default=["cache_in_nova", "bittorrent"],
        help="Properties of an image that snapshots of its servers do not get.",
    ),
    cfg.BoolOpt("force_config_drive", default=False),
    cfg.StrOpt("config_drive_format", default="iso9660", choices=("iso9660", "vfat")),
    cfg.StrOpt("dhcp_domain", default="novalocal"),
    cfg.IntOpt(
        "global_physnet_mtu",
        default=1500,
        min=68,
        help="MTU of the physical network; networks get 50 less where hosts have tunnels to each other.",
    ),
]
API = [
    cfg.IntOpt("max_limit", default=1000, min=0),
    cfg.StrOpt("compute_link_prefix"),
    cfg.StrOpt(
        "instance_list_cells_batch_strategy",
        default="distributed",
        choices=("distributed", "fixed"),
        help="How many servers each of several cells is asked for at a time: its share of the page, or",
    ),
    cfg.IntOpt("instance_list_cells_batch_fixed_size", default=100, min=100, help="this many."),
    cfg.BoolOpt(
        "instance_list_per_project_cells",
        default=False,
        help="Ask only the cells in which a project has servers for its list.",
    ),
    cfg.BoolOpt(
        "list_records_by_skipping_down_cells",
        default=True,
        help="Lists leave out cells that do not answer; otherwise they fail.",
    ),
    cfg.FloatOpt("cell_timeout", default=60.0, min=0.1, help="Seconds until a cell counts as not answering."),
]
QUOTA = [
    cfg.IntOpt("instances", default=10),
    cfg.IntOpt("cores", default=20),
    cfg.IntOpt("ram", default=51200),
    cfg.IntOpt("metadata_items", default=128),
    cfg.IntOpt("injected_files", default=5),
    cfg.IntOpt("injected_file_content_bytes", default=10240),
    cfg.IntOpt("injected_file_path_length", default=255),
    cfg.IntOpt("key_pairs", default=100),
    cfg.IntOpt("server_groups", default=10),
    cfg.IntOpt("server_group_members", default=10),
]
LIBVIRT = [
    cfg.StrOpt("virt_type", default="auto", choices=("auto", "kvm", "qemu")),
    cfg.StrOpt("connection_uri", default="qemu:///system"),
    cfg.StrOpt("cpu_mode", choices=("host-model", "host-passthrough", "maximum", "custom", "none")),
    cfg.ListOpt("cpu_models", default=[]),
    cfg.StrOpt("hw_machine_type", default="pc"),
    cfg.IntOpt("tb_cache_size", help="MiB of TCG translation cache a guest may use."),
    cfg.IntOpt("wait_soft_reboot_seconds", default=120),
    cfg.IntOpt(
        "stopped_event_delay",
        default=15,
        min=0,
        help="Seconds after which a guest that went off by itself is told of, unless it has started again.",
    ),
    cfg.IntOpt(
        "device_detach_attempts",
        default=8,
        min=1,
        help="How often a guest is asked to let go of a device until that has failed.",
    ),
    cfg.IntOpt("device_detach_timeout", default=20, min=1, help="Seconds that it has each time."),
    cfg.IntOpt(
        "num_pcie_ports",
        default=0,
        min=0,
        max=28,
        help="Places for devices in a q35 machine, those added later included; 0: sixteen.",
    ),
    cfg.IntOpt("realtime_scheduler_priority", default=1, min=1, max=99),
    *host_conf.LIVE_MIGRATION,
    cfg.StrOpt("live_migration_inbound_addr", help="Where other hosts reach this one; default: my_ip."),
    cfg.Opt(
        "cold_migration_ports",
        type=_ports,
        default="",
        help="Ports, like 49300-49400, at which files of guests are taken in; default: any.",
    ),
    cfg.IntOpt(
        "cold_migration_bandwidth",
        default=0,
        min=0,
        help="MiB a second with which files of a guest are sent at most; 0: as fast as may be.",
    ),
]
IMAGE_CACHE = [
    cfg.IntOpt("manager_interval", default=2400, help="Seconds between clean-ups of the image cache."),
    cfg.BoolOpt("remove_unused_base_images", default=True),
    cfg.IntOpt(
        "remove_unused_original_minimum_age_seconds",
        default=86400,
        help="How long an image is kept that no guest uses.",
    ),
]
VNC = [cfg.BoolOpt("enabled", default=True), cfg.StrOpt("server_listen", default="127.0.0.1")]
OVS = [
    cfg.StrOpt("ovsdb_connection", default="unix:/run/openvswitch/db.sock"),
    cfg.StrOpt("integration_bridge", default="br-int"),
    cfg.StrOpt("datapath_type", default="auto", choices=("auto", "system", "netdev")),
    cfg.StrOpt(
        "local_ip",
        default="",
        help="IPv4 address of this host where tunnels from other hosts end; without one it has no tunnels.",
    ),
]
L2_AGENT = [
    cfg.ListOpt(
        "tunnel_types",
        default=[],
        item_type=types.String(choices=["vxlan"]),
        help="How hosts reach each other's guests; for controllers that are not on a host with a local_ip.",
    ),
    cfg.PortOpt("vxlan_udp_port", default=4789),
]
FAKE = [
    cfg.IntOpt("vcpus", default=100_000, help="What the fake host has."),
    cfg.IntOpt("memory_mb", default=400_000_000),
    cfg.IntOpt("disk_gb", default=60_000_000),
    cfg.FloatOpt("delay", default=0.0, help="Seconds that every verb of the fake hypervisor takes."),
    *host_conf.FAKE,
]
DATABASE = [
    cfg.StrOpt(
        "connection", secret=True, help="PostgreSQL of a controller: postgresql://user:password@host/name."
    ),
    cfg.IntOpt("max_pool_size", default=8, min=1, max=100, help="Connections of one controller."),
]
NATS = [
    cfg.ListOpt("servers", default=["nats://127.0.0.1:4222"], help="NATS servers of this cell."),
    cfg.StrOpt("subject_prefix", default="kilonova", help="First part of all subjects."),
    cfg.StrOpt("nkey_seed_file", help="The seed of our nkey; `kilonova host add` makes those of agents."),
    cfg.StrOpt("ca_file", help="Who has signed the servers' certificates: gives TLS."),
    cfg.StrOpt("cert_file", help="Our certificate, where the servers want one."),
    cfg.StrOpt("key_file"),
    cfg.StrOpt(
        "users_file",
        default="/etc/kilonova/nats-users.conf",
        help="nats-server's users, which its configuration includes: `kilonova host add` writes it.",
    ),
]
UPGRADE_LEVELS = [cfg.StrOpt("compute", default="auto", help="The newest messages that agents are sent.")]
CATALOG = [
    cfg.StrOpt("host", help="Name or address of all services in the catalog; default: --listen."),
    cfg.StrOpt("scheme", default="http", choices=("http", "https")),
    cfg.IntOpt("port_offset", help="Added to the ports in the catalog; default: --port-offset."),
]
FERNET_TOKENS = [
    cfg.StrOpt("key_repository", help="Directory with the keys of tokens; the same on every controller.")
]
GLANCE_STORE = [
    cfg.StrOpt("filesystem_store_datadir", help="Directory with images; shared by all controllers.")
]
VOLUME = [
    cfg.StrOpt("directory", help="Directory with volumes; all controllers and hosts see it at this path."),
    cfg.StrOpt("storage_availability_zone", default="nova", help="Zone of volumes for which none is asked."),
    cfg.IntOpt("quota_volumes", default=10, min=-1, help="Volumes of a project; -1: any number."),
    cfg.IntOpt("quota_gigabytes", default=1000, min=-1, help="GiB of a project's volumes together."),
    cfg.IntOpt("per_volume_size_limit", default=-1, min=-1, help="GiB of one volume."),
]
JOURNAL = [
    cfg.FloatOpt("lease", default=10.0, help="Seconds until another controller takes over from a dead one."),
    cfg.IntOpt("concurrency", default=256, help="Operations that one controller runs at a time."),
]
IDENTITY = [
    cfg.IntOpt("password_hash_rounds", default=14, min=1, max=20, help="Logarithm of scrypt's N."),
    cfg.IntOpt("scrypt_block_size", default=8, min=1, max=64),
    cfg.IntOpt("scrypt_parallelism", default=5, min=1, max=64),
]
TOKEN = [
    cfg.IntOpt("expiration", default=3600, min=1, help="Seconds that a token lives."),
    cfg.IntOpt(
        "allow_expired_window",
        default=172_800,
        min=0,
        help="Seconds in which services may still ask whose a token was.",
    ),
]
COMPUTE = [
    *host_conf.COMPUTE,
    cfg.BoolOpt(
        "packing_host_numa_cells_allocation_strategy",
        default=False,
        help="Put guests' NUMA cells onto the host's fullest cells, not the emptiest.",
    ),
    cfg.IntOpt(
        "max_disk_devices_to_attach",
        default=-1,
        min=-1,
        help="Disks that a server may have, its own ones included; -1: as many as have a name.",
    ),
]
PCI = [
    *host_conf.PCI,
    cfg.MultiStrOpt("alias", default=[], help="Devices by a name, as JSON: flavors ask for them by it."),
]
PLACEMENT = [
    cfg.BoolOpt("randomize_allocation_candidates", default=False, help="Others at each request."),
    cfg.IntOpt(
        "max_allocation_candidates",
        default=10_000,
        min=-1,
        help="How many are made for one request at most; -1, which is Placement's default: any number.",
    ),
    cfg.StrOpt(
        "allocation_candidates_generation_strategy",
        default="depth-first",
        choices=("depth-first", "breadth-first"),
        help="All of one tree of providers before those of the next, or one of each in turn.",
    ),
    cfg.StrOpt("incomplete_consumer_project_id", default=NOBODY, help="For clients older than 1.8."),
    cfg.StrOpt("incomplete_consumer_user_id", default=NOBODY, help="For clients older than 1.8."),
]
WORKAROUNDS = [
    cfg.BoolOpt(
        "handle_virt_lifecycle_events",
        default=True,
        help="False: what guests do by themselves is found by looking, every sync_power_state_interval.",
    ),
]
GROUPS = {
    None: DEFAULT,
    "compute": COMPUTE,
    "pci": PCI,
    "api": API,
    "quota": QUOTA,
    "scheduler": SCHEDULER,
    "filter_scheduler": FILTER_SCHEDULER,
    "metrics": METRICS,
    "libvirt": LIBVIRT,
    "image_cache": IMAGE_CACHE,
    "vnc": VNC,
    "workarounds": WORKAROUNDS,
    "ovs": OVS,
    "agent": L2_AGENT,
    "fake": FAKE,
    "neutron": host_conf.NEUTRON,
    "neutron_tunnel": host_conf.TUNNEL,
    "journal": JOURNAL,
    "database": DATABASE,
    "nats": NATS,
    "upgrade_levels": UPGRADE_LEVELS,
    "catalog": CATALOG,
    "fernet_tokens": FERNET_TOKENS,
    "glance_store": GLANCE_STORE,
    "identity": IDENTITY,
    "token": TOKEN,
    "placement": PLACEMENT,
    "volume": VOLUME,
}

PORTS = {
    "identity": 5000,
    "compute": 8774,
    "volume": 8776,
    "placement": 8778,
    "image": 9292,
    "network": 9696,
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one process was told: the command line's part, and the file's by group."""

    state_dir: Path
    driver: str = "libvirt"
    listen: str = "127.0.0.1"
    port_offset: int = 0
    config_file: Path | None = None
    options: dict[str, dict[str, object]] = {}

    def port(self, service: str) -> int:
        return PORTS[service] + self.port_offset

    def url(self, service: str) -> str:
        """Where clients find a service."""
        catalog = self.options.get("catalog", {})
        offset = catalog.get("port_offset")
        port = PORTS[service] + (offset if isinstance(offset, int) else self.port_offset)
        return f"{catalog.get('scheme', 'http')}://{catalog.get('host') or self.listen}:{port}"

    def text(self, name: str, group: str = "DEFAULT") -> str:
        value = self.options[group][name]
        return "" if value is None else str(value)

    def number(self, name: str, group: str = "DEFAULT") -> int:
        value = self.options[group][name]
        assert isinstance(value, int), f"[{group}]{name} is no whole number"
        return value

    def real(self, name: str, group: str = "DEFAULT") -> float:
        value = self.options[group][name]
        assert isinstance(value, (int, float)), f"[{group}]{name} is no number"
        return float(value)

    def texts(self, name: str, group: str = "DEFAULT") -> tuple[str, ...]:
        """The values of an option that may be given several times."""
        value = self.options[group][name]
        assert isinstance(value, (list, tuple)), f"[{group}]{name} is no list"
        return tuple(str(each) for each in value)

    def flag(self, name: str, group: str = "DEFAULT") -> bool:
        return bool(self.options[group][name])

    def listed(self, name: str, group: str = "DEFAULT") -> list[object]:
        value = self.options[group][name] or []
        assert isinstance(value, list), f"[{group}]{name} is no list"
        return value


def read_options(config_file: Path | None) -> dict[str, dict[str, object]]:
    """All options by group, with defaults filled in.  Raises oslo_config.cfg.Error for a bad file."""
    conf = cfg.ConfigOpts()
    for group, options in GROUPS.items():
        conf.register_opts(options, group=group)
    files = [str(config_file)] if config_file else []
    conf([], project="kilonova", default_config_files=files, default_config_dirs=[])
    physical = [host_conf.physnet(name) for name in conf.neutron.physnets]
    for group, options in physical:  # groups that another option names
        conf.register_opts(options, group=group)
    result: dict[str, dict[str, object]] = {}
    for group, options in (*GROUPS.items(), *physical):
        source = conf if group is None else conf[group]
        result[group or "DEFAULT"] = {option.dest: source[option.dest] for option in options}
    return result
