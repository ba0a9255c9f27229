"""Claims: what a server takes of a host, all of it in one transaction with its allocations in placement.

Nobody needs this who wants neither cells nor devices: such a claim is placement's alone, and costs nothing
more.  A consumer is a server, or the migration that keeps the old side of a move.  All verbs converge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from kilonova.db import host_resources
from kilonova.db.engine import Database, Tx
from kilonova.errors import Conflict, HostFault
from kilonova.model.flavor import Flavor
from kilonova.model.host_resources import Claim, HostResources, Item, Wanted
from kilonova.model.instance import Instance
from kilonova.model.numa import GuestTopology
from kilonova.model.pci import PciRequest
from kilonova.resources import pci_request
from kilonova.resources.host_fit import NOTHING, Fitted, fit_host, fit_more
from kilonova.resources.numa_fit import DoesNotFit
from kilonova.resources.numa_request import is_concerned, wanted_topology
from kilonova.resources.pci_request import Alias
from kilonova.services.placement.port import Allocations, Also, Placement
from kilonova.settings import Settings

T = TypeVar("T")

ORDINARY = frozenset({"VCPU", "PCPU", "MEMORY_MB", "DISK_GB"})
"""Resource classes that nobody lists one by one."""

NO_ROOM = "another server was faster in taking what was free"


class Claims:
    """``packing``: [compute]packing_host_numa_cells_allocation_strategy; ``aliases``: of [pci]alias."""

    def __init__(
        self,
        db: Database,
        placement: Placement,
        *,
        aliases: Mapping[str, Alias] | None = None,
        packing: bool = False,
    ) -> None:
        self._db = db
        self._placement = placement
        self.aliases = aliases or {}
        self.packing = packing

    @classmethod
    def of_settings(cls, settings: Settings, db: Database, placement: Placement) -> Claims:
        """Raises Invalid for a [pci]alias that makes no sense."""
        return cls(
            db,
            placement,
            aliases=pci_request.read_aliases(settings.texts("alias", "pci")),
            packing=settings.flag("packing_host_numa_cells_allocation_strategy", "compute"),
        )

    def wanted(
        self, flavor: Flavor, properties: Mapping[str, str], ports: tuple[PciRequest, ...] = ()
    ) -> Wanted:
        """What a server of this flavor and image wants, with what its ports do (RT-5).  Raises Invalid."""
        devices = pci_request.of_flavor(flavor, properties, self.aliases)
        return Wanted(numa=wanted_topology(flavor, properties), pci=(*devices, *ports))

    def fit(self, host: HostResources, wanted: Wanted) -> str | None:
        """Why a host cannot give what is wanted, or None: for filters.  Nothing is claimed."""
        try:
            fit_host(host, wanted, packing=self.packing)
        except DoesNotFit as error:
            return str(error)
        return None

    async def claim(
        self,
        consumer: str,
        compute_id: str,
        wanted: Wanted,
        allocations: Allocations,
        project_id: str,
        user_id: str,
        *,
        instance_uuid: str | None = None,
        also: Also | None = None,
    ) -> Claim | str:
        """Take ``allocations`` and what is ``wanted`` of the host ``compute_id``, or nothing.

        The claim, or the reason why not, joined of all there are.  ``also`` runs in the same transaction,
        as in `Placement.claim`.  A repeat gets the claim that there is.  Raises NotFound (an unknown
        provider), Conflict (the consumer holds something else already).
        """
        empty = Claim(consumer=consumer, instance_uuid=instance_uuid or consumer, compute_id=compute_id)
        made, reasons = empty, list[str]()

        def write(tx: Tx) -> bool:
            nonlocal made
            reasons.clear()
            try:
                made = _take(tx, empty, wanted, allocations, packing=self.packing)
            except DoesNotFit as error:
                reasons.append(str(error))
                return False
            return also is None or also(tx) is not False

        plain = wanted.nothing and not _may_be_listed(allocations)
        fitted = await self._placement.claim(
            consumer, allocations, project_id, user_id, also=also if plain else write
        )
        return made if fitted else "; ".join(reasons) or NO_ROOM

    async def release(self, consumer: str) -> None:
        """Give back all that the consumer holds, whatever it is."""
        await self._placement.release(consumer, also=_dropping(consumer))

    async def release_server(self, instance: Instance, *, also: Also | None = None) -> None:
        """Give back what a server holds: an ordinary one costs nothing more than its allocations.

        ``also`` runs in the same transaction.
        """
        also = _dropping(instance.uuid, also) if is_special(instance) else also
        await self._placement.release(instance.uuid, also=also)

    async def of(self, instance: Instance, holder: str | None = None) -> Claim | None:
        """What a server holds beyond its allocations; None, without a look, for an ordinary one.

        ``holder``: the consumer, if it is not the server itself."""
        if not is_special(instance):
            return None
        return await self._db.read(lambda tx: host_resources.claim_of(tx, holder or instance.uuid))

    async def read(self, fn: Callable[[Tx], T]) -> T:
        """Look at claims, where they are."""
        return await self._db.read(fn)

    async def set_aside(self, instance_uuid: str, migration_uuid: str) -> None:
        """The beginning of a move: what the server holds becomes its migration's, as its old side.

        The server may then claim its new side.  Raises Conflict when the migration holds something else.
        """

        def rename(tx: Tx) -> None:
            host_resources.rename(tx, instance_uuid, migration_uuid)

        await self._placement.move(instance_uuid, migration_uuid, consumer_type="MIGRATION", also=rename)

    async def take_back(self, instance_uuid: str, migration_uuid: str) -> None:
        """A move is given up or reverted: the new side is released, and the old one is the server's again."""
        if not await self._placement.held(migration_uuid):
            return  # done before
        await self.release(instance_uuid)

        def rename(tx: Tx) -> None:
            host_resources.rename(tx, migration_uuid, instance_uuid)

        await self._placement.move(migration_uuid, instance_uuid, consumer_type="INSTANCE", also=rename)

    async def drop_old(self, migration_uuid: str) -> None:
        """A move is confirmed: its old side is released."""
        await self.release(migration_uuid)

    async def attach(
        self, instance: Instance, compute_id: str, requests: tuple[PciRequest, ...]
    ) -> Claim | str:
        """Take devices for a server that runs, near the cells that it has (RT-12).

        Its claim then, or the reason why not.  Requests that are answered already are not taken twice.
        """
        return await self._db.write(lambda tx: _attach(tx, instance.uuid, compute_id, requests))

    async def detach(self, instance: Instance, request_id: str) -> None:
        """Give back the devices of one request of a server (RT-12)."""
        await self._db.write(lambda tx: _detach(tx, instance.uuid, request_id))

    def check_live(self, wanted: Wanted, current: Claim | None) -> Wanted:
        """What a live migration claims: devices of ports only come later, and pages stay as they are.

        Raises HostFault, Nova's rules for a live migration's claim (CL-10, CL-11).
        """
        if any(request.port_id is None for request in wanted.pci):
            raise HostFault("A server with PCI devices of its flavor cannot be migrated live.")
        before = None if current is None or current.numa is None else current.numa.cells[0].page_size_kib
        if wanted.numa is None or before is None:
            return Wanted(numa=wanted.numa, limits=wanted.limits)
        return Wanted(numa=_with_pages(wanted, before), limits=wanted.limits)


def _dropping(consumer: str, also: Also | None = None) -> Also:
    def drop(tx: Tx) -> None:
        host_resources.drop(tx, consumer)
        if also is not None:
            also(tx)

    return drop


def _take(tx: Tx, made: Claim, wanted: Wanted, allocations: Allocations, *, packing: bool) -> Claim:
    """Fit and write the claim, on a host that nobody else changes meanwhile.  Raises DoesNotFit, Conflict."""
    host_resources.lock(tx, made.compute_id)
    before = host_resources.claim_of(tx, made.consumer)
    if before is not None:
        if before.compute_id != made.compute_id:
            raise Conflict(f"{made.consumer} has a claim on the host {before.compute_id}: release it first.")
        return before
    items = _items(tx, made.compute_id, allocations)
    fitted: Fitted = NOTHING
    if not wanted.nothing:
        host = _allocated(host_resources.read(tx, made.compute_id), allocations)
        fitted = fit_host(host, wanted, packing=packing)
    claim = msgspec.structs.replace(
        made,
        numa=fitted.numa,
        requests=wanted.pci,
        holdings=fitted.holdings,
        devices=fitted.devices,
        items=items,
    )
    if not claim.nothing:
        host_resources.add(tx, claim)
    return claim


def _attach(tx: Tx, uuid: str, compute_id: str, requests: tuple[PciRequest, ...]) -> Claim | str:
    host_resources.lock(tx, compute_id)
    before = host_resources.claim_of(tx, uuid)
    claim = before or Claim(consumer=uuid, instance_uuid=uuid, compute_id=compute_id)
    if claim.compute_id != compute_id:
        raise Conflict(f"{uuid} has a claim on the host {claim.compute_id}, not on {compute_id}.")
    known = {each.id for each in claim.requests}
    new = tuple(each for each in requests if each.id not in known)
    if not new:
        return claim
    try:
        fitted = fit_more(host_resources.read(tx, compute_id), claim, new)
    except DoesNotFit as error:
        return str(error)
    after = msgspec.structs.replace(
        claim,
        requests=(*claim.requests, *new),
        holdings=(*claim.holdings, *fitted.holdings),
        devices=(*claim.devices, *fitted.devices),
    )
    if before is None:
        host_resources.add(tx, after)
    else:
        host_resources.change(tx, before, after)
    return after


def _detach(tx: Tx, uuid: str, request_id: str) -> None:
    found = host_resources.claim_of(tx, uuid)
    if found is None:
        return
    host_resources.lock(tx, found.compute_id)
    claim = host_resources.claim_of(tx, uuid)  # as it is now that nobody else changes it
    if claim is None:
        return
    given = {a for each in claim.holdings if each.request_id == request_id for a in each.addresses}
    after = msgspec.structs.replace(
        claim,
        requests=tuple(each for each in claim.requests if each.id != request_id),
        holdings=tuple(each for each in claim.holdings if each.request_id != request_id),
        devices=tuple(each for each in claim.devices if each.address not in given),
    )
    if after.nothing:
        host_resources.drop(tx, uuid)
    elif after != claim:
        host_resources.change(tx, claim, after)


def _allocated(host: HostResources, allocations: Allocations) -> HostResources:
    """Where devices are in placement, too ([pci]report_in_placement), only those that were booked there.

    A device's tag ``rp_uuid`` names its provider.  A request that booked none of them takes any.
    """
    booked = {each.device.tags.get("rp_uuid") for each in host.devices} & set(allocations)
    if not booked:
        return host
    devices = tuple(each for each in host.devices if each.device.tags.get("rp_uuid") in {None, *booked})
    return msgspec.structs.replace(host, devices=devices)


def _may_be_listed(allocations: Allocations) -> bool:
    return any(not ORDINARY.issuperset(resources) for resources in allocations.values())


def _items(tx: Tx, compute_id: str, allocations: Allocations) -> tuple[Item, ...]:
    """As many free items as were booked of each class that a provider lists one by one (RT-6).

    Raises DoesNotFit when there are too few.
    """
    if not _may_be_listed(allocations):
        return ()
    listed = host_resources.listed_classes(tx, compute_id)
    found: list[Item] = []
    for provider, resources in sorted(allocations.items()):
        for name, amount in sorted(resources.items()):
            if (provider, name) not in listed:
                continue
            free = host_resources.free_items(tx, compute_id, provider, name)
            if len(free) < amount:
                raise DoesNotFit(f"{amount} of {name} wanted, {len(free)} are free")
            found += free[:amount]
    return tuple(found)


def _with_pages(wanted: Wanted, size_kib: int) -> GuestTopology | None:
    """The cells wanted, the first one with pages of this size."""
    if wanted.numa is None:
        return None
    first, *rest = wanted.numa.cells
    first = msgspec.structs.replace(first, page_size=str(size_kib))
    return msgspec.structs.replace(wanted.numa, cells=(first, *rest))


def is_special(instance: Instance) -> bool:
    """Whether a server may hold more than allocations; quick, since most do not."""
    properties = instance.image.properties if instance.image else {}
    return is_special_kind(instance.flavor, properties) or any(
        vif.vnic_type != "normal" for vif in instance.vifs
    )


def is_special_kind(flavor: Flavor, properties: Mapping[str, str]) -> bool:
    if not flavor.extra_specs:
        return is_concerned(flavor, properties)
    return (
        pci_request.FLAVOR_KEY in flavor.extra_specs
        or is_concerned(flavor, properties)
        or not ORDINARY.issuperset(flavor.resources())
    )
