"""What the scheduler is asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kilonova.model import host_resources
from kilonova.scheduler.wanted import Wanted

Allocations = dict[str, dict[str, int]]
"""Provider uuid -> resource class -> amount."""


class GroupState(msgspec.Struct, frozen=True, kw_only=True):
    """The server group of a server that looks for a host, and where the other members are."""

    uuid: str
    policy: str
    most: int = 1  # members that one host may have under anti-affinity
    hosts: dict[str, int] = {}  # compute id -> members other than this one


class ServerRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A server looking for a host.

    ``forced_*`` (zone:host:node) skip the filters, ``requested_*`` (2.74) do not; ``tried`` has the hosts
    that failed in earlier rounds, with the reason; ``ignored`` those that will not do, for the reason given
    (the host that is being evacuated, say).  ``cells``: only hosts of these (uuids) will do; None: of any.
    ``own_cell``: the one in which it is, of several that will do.
    ``group`` and ``hosts_of`` (server -> host, of the servers that the hints name) are what the database knew
    when the request was made.
    """

    uuid: str
    project_id: str
    wanted: Wanted
    special: host_resources.Wanted = host_resources.Wanted()  # what is given away one by one
    flavor: str = ""  # its name
    availability_zone: str | None = None
    forced_host: str | None = None
    forced_node: str | None = None
    requested_host: str | None = None
    requested_node: str | None = None
    image_id: str | None = None
    image_properties: dict[str, str] = {}
    extra_specs: dict[str, str] = {}
    hints: Mapping[str, object] = {}
    group: GroupState | None = None
    hosts_of: dict[str, str] = {}
    tried: dict[str, str] = {}
    ignored: dict[str, str] = {}
    cells: frozenset[str] | None = None
    own_cell: str | None = None

    def is_like(self, other: ServerRequest) -> bool:
        """Whether the other one asks the same of what is fixed of hosts."""
        return (
            self.wanted == other.wanted
            and self.extra_specs == other.extra_specs
            and self.image_properties == other.image_properties
            and self.hints == other.hints
            and self._names() == other._names()
        )

    def _names(self) -> tuple[object, ...]:
        return (
            self.project_id,
            self.flavor,
            self.image_id,
            self.availability_zone,
            self.forced_host,
            self.forced_node,
            self.requested_host,
            self.requested_node,
            self.cells,
        )

    @property
    def forced(self) -> bool:
        return bool(self.forced_host or self.forced_node)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A host that will do, and what would be booked for the server there.

    ``special``: what the server wants there beyond amounts, with the host's limits.
    """

    host: str
    node: str
    compute_id: str
    availability_zone: str
    allocations: Allocations
    special: host_resources.Wanted = host_resources.Wanted()


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The host that was taken.

    ``removed``: how many hosts each filter has refused; ``reasons``: why, for some hosts, and for those that
    were lost to others.
    """

    host: str
    node: str
    compute_id: str
    availability_zone: str
    allocations: Allocations = {}
    removed: dict[str, int] = {}
    reasons: dict[str, str] = {}


class Weight(msgspec.Struct, frozen=True):
    """What one weigher makes of one host: the raw figure, and what it adds to the sum."""

    raw: float
    share: float


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """A host that would do."""

    host: str
    weight: float
    weights: dict[str, Weight]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a server would go, the best host first, and why not to the others.

    ``counts``: filter -> hosts that it removed, in the order of asking.
    """

    hosts: int
    ranked: tuple[Ranked, ...]
    counts: dict[str, int]
    reasons: dict[str, str]
