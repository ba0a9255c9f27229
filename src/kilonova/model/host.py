"""Compute hosts: what they have and how they are."""

from __future__ import annotations

import msgspec

from kilonova.model.host_resources import Item
from kilonova.model.numa import HostTopology
from kilonova.model.pci import PciDevice

TUNNELING_IP = "tunneling_ip"
"""In the details of a host: where tunnels of other hosts to it end, in Neutron's word."""

DISABLED_TRAIT = "COMPUTE_STATUS_DISABLED"
"""On the provider of a host to which no new servers may go."""


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """One resource class of a provider, in placement's words."""

    total: int
    reserved: int = 0
    min_unit: int = 1
    max_unit: int = 2147483647
    step_size: int = 1
    allocation_ratio: float = 1.0

    @property
    def capacity(self) -> int:
        return int((self.total - self.reserved) * self.allocation_ratio)


class ProviderReport(msgspec.Struct, frozen=True, kw_only=True):
    """One resource provider of a host's tree, parents before their children."""

    uuid: str
    name: str
    parent: str | None = None  # uuid; None: a root, as the compute node itself is
    inventories: dict[str, Inventory] = {}
    traits: tuple[str, ...] = ()
    aggregates: tuple[str, ...] | None = None  # None: whatever placement has
    initial_ratios: tuple[str, ...] = ()  # classes whose allocation_ratio is for a new record only


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One figure that a monitor took: Nova's ``cpu.frequency`` and its like."""

    name: str
    value: float
    timestamp: int
    source: str


class HostReport(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent says of its host when it starts and whenever it changes."""

    host: str
    compute_id: str  # the uuid of the compute node and of its resource provider
    hypervisor_hostname: str
    hypervisor_type: str
    hypervisor_version: int
    host_ip: str
    inventories: dict[str, Inventory]
    traits: tuple[str, ...] = ()
    cpu_info: dict[str, object] = {}
    details: dict[str, str] = {}  # e.g. datapath_type, which the network service copies into bindings
    started_at: int = 0
    providers: tuple[ProviderReport, ...] = ()  # below the compute node's own, which has ``inventories``
    numa: HostTopology | None = None
    pci_devices: tuple[PciDevice, ...] = ()
    items: tuple[Item, ...] = ()  # what its providers list one by one
    metrics: tuple[Metric, ...] = ()
    version: str = ""  # of the messages that its agent understands
    initial_ratios: tuple[str, ...] = ()  # as a ProviderReport's: what placement has goes before
    starting: bool = False  # its agent has just started: inventories may move between providers
    boot_id: str = ""  # another one whenever the host was booted; empty: not known
    resume_guests: bool = False  # when it was booted, guests that ran are to run again

    @property
    def tree(self) -> tuple[ProviderReport, ...]:
        """All providers, the compute node's own first."""
        node = ProviderReport(
            uuid=self.compute_id,
            name=self.hypervisor_hostname,
            inventories=self.inventories,
            traits=self.traits,
            initial_ratios=self.initial_ratios,
        )
        return (node, *self.providers)


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """A compute service and its node, as the controller knows them."""

    id: int
    service_uuid: str
    compute_id: str
    host: str
    hypervisor_hostname: str
    hypervisor_type: str
    hypervisor_version: int
    host_ip: str
    availability_zone: str | None = None
    disabled: bool = False
    disabled_reason: str | None = None
    forced_down: bool = False
    last_seen_at: int = 0
    report_count: int = 0
    created_at: int = 0
    updated_at: int | None = None
    cpu_info: dict[str, object] = {}
    details: dict[str, str] = {}
    started_at: int = 0
    session: str = ""  # of its agent, when that is over the bus
    version: str = ""  # of the messages that its agent knows
    metrics: tuple[Metric, ...] = ()
    failed_builds: int = 0  # since the last one that succeeded
    cell_uuid: str | None = None  # None: in the first cell
    boot_id: str = ""  # of the boot after which its guests were last seen to; empty: not known
    booted_at: int = 0  # when the last boot that we know of was reported
