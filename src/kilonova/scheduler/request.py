"""What the scheduler is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kilonova.model.host import Host
from kilonova.services.placement.port import ProviderSummary


class ServerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A server looking for a host.

    ``forced_*`` (zone:host:node) skip the filters, ``requested_*`` (2.74) do not; ``tried`` has the hosts
    that failed in earlier rounds, with the reason.
    """

    uuid: str
    project_id: str
    resources: dict[str, int]
    availability_zone: str | None = None
    forced_host: str | None = None
    forced_node: str | None = None
    requested_host: str | None = None
    requested_node: str | None = None
    image_properties: dict[str, str] = {}
    extra_specs: dict[str, str] = {}
    hints: Mapping[str, object] = {}
    tried: dict[str, str] = {}


class HostState(msgspec.Struct, frozen=True, kw_only=True):
    """One host as the scheduler sees it."""

    host: Host
    provider: ProviderSummary
    up: bool
    zone: str

    def free(self, resource: str) -> int:
        """What may still be booked, the allocation ratio included."""
        inventory = self.provider.inventories.get(resource)
        return 0 if inventory is None else inventory.capacity - self.provider.used.get(resource, 0)


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The host that was taken and, for each host looked at before, why not."""

    host: str
    node: str
    availability_zone: str
    reasons: dict[str, str]
