"""Whether what is booked, claimed and counted is what servers hold, over facts read before.

Each finding says what is wrong, with what, and what to do.  What an operation is just working on is left
out: it is allowed to be in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from kilonova.db import audit_repairs
from kilonova.db.audit_facts import Attached, CellFacts, TopFacts
from kilonova.db.engine import Tx
from kilonova.errors import Invalid
from kilonova.model.host_resources import Claim
from kilonova.model.instance import Instance
from kilonova.model.states import Vm
from kilonova.resources import numa_request, pci_request
from kilonova.resources.claims import is_special
from kilonova.resources.shortfalls import shortfalls
from kilonova.scheduler.wanted import wanted_of

MIGRATION = "MIGRATION"
WRONG_COUNTER = "wrong used counter"
OVER = frozenset({"completed", "done", "confirmed", "reverted", "cancelled"})
"""Statuses of migrations that hold nothing any more; those in error may (RT-17)."""
LOOK = "Look at it with `openstack resource provider allocation show`; delete it there if it is nobody's."


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """``kind`` names the sort of fault, ``subject`` whom it concerns; ``safe``: its repair harms nobody."""

    kind: str
    subject: str
    message: str
    advice: str
    safe: bool = False

    def __str__(self) -> str:
        return f"{self.message}  {self.advice}"


class Facts:
    """All cells' servers together, and the top database's."""

    def __init__(self, top: TopFacts, cells: Sequence[CellFacts]) -> None:
        self.top = top
        self.servers = {uuid: server for cell in cells for uuid, server in cell.servers.items()}
        self.deleted = frozenset().union(*(cell.deleted for cell in cells))
        self.busy = frozenset().union(*(cell.busy for cell in cells))
        self.migrations = {uuid: status for cell in cells for uuid, status in cell.migrations.items()}
        self.kept_for_moves = {each.migration for cell in cells for each in cell.owed}
        self.names = {compute_id: name for name, compute_id in top.hosts.items()}

    def place_of(self, server: Instance) -> str | None:
        """The compute id of its host."""
        return None if server.host is None else self.top.hosts.get(server.host)

    def is_migration(self, consumer: str) -> bool:
        return self.top.consumer_types.get(consumer) == MIGRATION or consumer in self.migrations

    def owner_is_busy(self, consumer: str) -> bool:
        claim = self.top.claims.get(consumer)
        return consumer in self.busy or (claim is not None and claim.instance_uuid in self.busy)


def findings(top: TopFacts, cells: Sequence[CellFacts]) -> list[Finding]:
    """Everything that is not as it should be, in the order of kinds; empty for a sound cloud."""
    facts = Facts(top, cells)
    found: list[Finding] = []
    for check in (_counters, _allocations, _servers, _claims, _held, _hosts, _volumes):
        found += check(facts)
    return found


def _counters(facts: Facts) -> Iterator[Finding]:
    for each in facts.top.miscounted:
        yield Finding(
            kind=WRONG_COUNTER,
            subject=each.provider,
            message=f"{each.resource_class} of {facts.names.get(each.provider, each.provider)} counts "
            f"{each.used} as used, and the allocations are {each.allocated}.",
            advice="Repair it: the counter is set to the sum.",
            safe=each.provider in facts.top.roots,
        )


def _allocations(facts: Facts) -> Iterator[Finding]:
    """What consumers hold in placement (RT-19)."""
    for consumer in sorted({*facts.top.allocations, *facts.top.consumer_types}):
        server = facts.servers.get(consumer)
        if facts.owner_is_busy(consumer):
            continue
        if facts.is_migration(consumer):
            yield from _of_migration(facts, consumer)
        elif server is not None:
            yield from _of_server(facts, server)
        elif consumer in facts.deleted:
            yield Finding(
                kind="allocation of a deleted server",
                subject=consumer,
                message=f"The deleted server {consumer} still holds {_shown(facts, consumer)}.",
                advice="Repair it: the allocation is removed.",
                safe=True,
            )
        elif _may_be_a_server(facts, consumer):
            yield Finding(
                kind="allocation without a server",
                subject=consumer,
                message=f"{consumer} holds {_shown(facts, consumer)}, and there is no such server.",
                advice=LOOK,
            )


def _may_be_a_server(facts: Facts, consumer: str) -> bool:
    """Others may book, too: what is booked on hosts is what we answer for."""
    places = facts.top.allocations.get(consumer, {})
    ours = any(facts.top.roots.get(provider) in facts.names for provider in places)
    return not places or ours


def _shown(facts: Facts, consumer: str) -> str:
    held = facts.top.allocations.get(consumer, {})
    parts = [
        f"{', '.join(f'{amount} {name}' for name, amount in sorted(resources.items()))} of "
        f"{facts.names.get(provider, provider)}"
        for provider, resources in sorted(held.items())
    ]
    return " and ".join(parts) or "nothing"


def _of_migration(facts: Facts, consumer: str) -> Iterator[Finding]:
    status = facts.migrations.get(consumer)
    if consumer in facts.kept_for_moves:
        return  # until the host that was left is rid of the server
    if status is None or status in OVER:
        yield Finding(
            kind="allocation of a migration that is over",
            subject=consumer,
            message=f"The migration {consumer} ({status or 'unknown'}) holds {_shown(facts, consumer)}.",
            advice=f"Its server is elsewhere or as it was.  {LOOK}",
        )


def _of_server(facts: Facts, server: Instance) -> Iterator[Finding]:
    place, held = facts.place_of(server), facts.top.allocations.get(server.uuid, {})
    there = {facts.top.roots.get(provider) for provider in held} & set(facts.names)
    if held and there != ({place} - {None}):
        where = f"on the host {server.host}" if server.host else "on no host"
        yield Finding(
            kind="allocation on a wrong host",
            subject=server.uuid,
            message=f"The server {server.uuid} is {where} and holds {_shown(facts, server.uuid)}.",
            advice=LOOK,
        )
        return
    try:
        properties = server.image.properties if server.image else {}
        wanted = wanted_of(server.flavor, properties, root_disk=server.image is not None).together()
    except Invalid:
        return  # a flavor of an older release, which says nothing of amounts any more
    total: Counter[str] = Counter()
    for resources in held.values():
        total.update(resources)
    if held and dict(total) != wanted:
        yield Finding(
            kind="allocation of a wrong size",
            subject=server.uuid,
            message=f"The server {server.uuid} holds {dict(sorted(total.items()))}, and its flavor is "
            f"{dict(sorted(wanted.items()))}.",
            advice=LOOK,
        )


def _servers(facts: Facts) -> Iterator[Finding]:
    """What servers lack."""
    for server in facts.servers.values():
        if server.host is None or server.uuid in facts.busy or server.vm_state == Vm.SHELVED_OFFLOADED:
            continue
        if server.host not in facts.top.hosts:
            yield Finding(
                kind="server on an unknown host",
                subject=server.uuid,
                message=f"The server {server.uuid} is on the host {server.host}, which is not known.",
                advice="Start that host's agent, or evacuate the server.",
            )
        elif server.uuid not in facts.top.allocations:
            yield Finding(
                kind="server without an allocation",
                subject=server.uuid,
                message=f"The server {server.uuid} is on the host {server.host} and holds nothing there.",
                advice="Its resources may be given away: allocate them with `openstack resource provider "
                "allocation set`.",
            )
        if is_special(server) and server.uuid not in facts.top.claims and _needs_claim(server):
            yield Finding(
                kind="server without its claim",
                subject=server.uuid,
                message=f"The server {server.uuid} wants NUMA cells or devices and has claimed none.",
                advice="Its CPUs or devices may be given away: migrate or rebuild it.",
            )


def _needs_claim(server: Instance) -> bool:
    if server.flavor.extra_specs.get(pci_request.FLAVOR_KEY):
        return True
    properties = server.image.properties if server.image else {}
    try:
        return numa_request.wanted_topology(server.flavor, properties) is not None
    except Invalid:
        return False


def _claims(facts: Facts) -> Iterator[Finding]:
    """Claims against those who should have them."""
    for claim in facts.top.claims.values():
        server = facts.servers.get(claim.instance_uuid)
        if claim.instance_uuid in facts.busy or claim.consumer in facts.kept_for_moves:
            continue
        if server is None:
            yield _orphan(facts, claim)
        elif claim.consumer not in facts.top.allocations:
            yield Finding(
                kind="claim without an allocation",
                subject=claim.consumer,
                message=f"{claim.consumer} has claimed {_things(claim)} and holds no allocation.",
                advice="Its amounts may be given away: look at the server first.",
            )
        elif claim.consumer == server.uuid and claim.compute_id != facts.place_of(server):
            yield Finding(
                kind="claim on a wrong host",
                subject=claim.consumer,
                message=f"The server {server.uuid} is on the host {server.host} and has claimed "
                f"{_things(claim)} on {facts.names.get(claim.compute_id, claim.compute_id)}.",
                advice="What it really uses may be given away: migrate it.",
            )


def _orphan(facts: Facts, claim: Claim) -> Finding:
    deleted = claim.instance_uuid in facts.deleted
    return Finding(
        kind="claim of a deleted server" if deleted else "claim without a server",
        subject=claim.consumer,
        message=f"{claim.consumer} has claimed {_things(claim)}, and its server {claim.instance_uuid} "
        f"{'is deleted' if deleted else 'does not exist'}.",
        advice="Repair it: the claim is dropped." if deleted else "Find out whose it is before you drop it.",
        safe=deleted,
    )


def _things(claim: Claim) -> str:
    things = [] if claim.numa is None else [f"{len(claim.numa.cells)} NUMA cells"]
    things += [f"the device {each.address}" for each in claim.devices]
    things += [f"{each.resource_class} {each.identifier}" for each in claim.items]
    return ", ".join(things) or "nothing"


def _held(facts: Facts) -> Iterator[Finding]:
    """Devices and items: who holds them, against who has claimed them, each once."""
    claimed: dict[tuple[str, str], list[str]] = {}
    for claim in facts.top.claims.values():
        if claim.instance_uuid not in facts.busy:
            for what in _keys(claim):
                claimed.setdefault((claim.compute_id, what), []).append(claim.consumer)
    held = {
        (compute_id, each.device.address): each.holder
        for compute_id, resources in facts.top.resources.items()
        for each in resources.devices
        if each.holder is not None and not facts.owner_is_busy(each.holder)
    }
    for (compute_id, name, identifier), holder in facts.top.held_items.items():
        if not facts.owner_is_busy(holder):
            held[compute_id, f"{name} {identifier}"] = holder
    for key in sorted({*claimed, *held}):
        holder, by = held.get(key, ""), claimed.get(key, [])
        if [holder] == by:
            continue
        place = facts.names.get(key[0], key[0])
        yield Finding(
            kind="device claimed twice" if len(by) > 1 else "device held by another",
            subject=key[1],
            message=f"{key[1]} of {place} is held by {holder or 'nobody'} and claimed by "
            f"{' and '.join(sorted(by)) or 'nobody'}.",
            advice="Move or delete all of these servers but one; who has it is in the host's hypervisor.",
        )


def _keys(claim: Claim) -> Iterable[str]:
    yield from (each.address for each in claim.devices)
    yield from (f"{each.resource_class} {each.identifier}" for each in claim.items)


def _hosts(facts: Facts) -> Iterator[Finding]:
    for compute_id, resources in sorted(facts.top.resources.items()):
        name = facts.names.get(compute_id)
        for shortfall in shortfalls(resources):
            yield Finding(
                kind="host has less than is held",
                subject=name or compute_id,
                message=f"On the host {name or compute_id}, {shortfall}.",
                advice="Give the host back what it had, or migrate those servers.",
            )
    for name, compute_id in sorted(facts.top.hosts.items()):
        if compute_id not in facts.top.roots:
            yield Finding(
                kind="host without a provider",
                subject=name,
                message=f"Placement does not know the host {name} ({compute_id}): no server goes there.",
                advice="Restart its agent, which reports it.",
            )


def _volumes(facts: Facts) -> Iterator[Finding]:
    """What servers have of volumes, against what the volume service knows of that."""
    known = {
        each.attachment_id: (server, each)
        for server in facts.servers.values()
        for each in server.volumes
        if server.uuid not in facts.busy
    }
    there = {each.id for each in facts.top.attached}
    for each in facts.top.attached:
        if each.server in facts.busy:
            continue
        if each.id not in known:
            yield _nobodys(facts, each)
        elif each.host != known[each.id][0].host:
            yield Finding(
                kind="volume on a wrong host",
                subject=each.server,
                message=f"Volume {each.volume} is connected to {each.host or 'no host'}, and its server "
                f"{each.server} is on {known[each.id][0].host or 'no host'}.",
                advice="Detach and attach it, or migrate the server.",
            )
    for attachment_id, (server, volume) in known.items():
        if attachment_id not in there:
            yield Finding(
                kind="server with an unknown volume",
                subject=server.uuid,
                message=f"The server {server.uuid} has volume {volume.volume_id} by the attachment "
                f"{attachment_id}, which the volume service does not know.",
                advice="Take it from the server: `openstack server remove volume`.",
            )


def _nobodys(facts: Facts, each: Attached) -> Finding:
    what = "is deleted" if each.server in facts.deleted else "does not exist"
    return Finding(
        kind="volume attachment without a server",
        subject=each.server,
        message=f"Volume {each.volume} is kept for the server {each.server} by the attachment {each.id}, "
        f"{'of which that knows nothing' if each.server in facts.servers else f'and that {what}'}.",
        advice="If nobody uses it, delete it as an administrator: `openstack --os-volume-api-version 3.27 "
        "volume attachment delete`.",
    )


def repair(tx: Tx, top: TopFacts, found: Sequence[Finding]) -> list[Finding]:
    """Mend what is safe to mend and still so; what was mended."""
    mended = []
    for each in found:
        if not each.safe:
            continue
        if each.kind == WRONG_COUNTER:
            wrong = [one for one in top.miscounted if one.provider == each.subject]
            if any([audit_repairs.recount(tx, one) for one in wrong]):
                mended.append(each)
            continue
        claim = top.claims.get(each.subject)
        owner = each.subject if claim is None else claim.instance_uuid
        if audit_repairs.release_deleted(tx, each.subject, owner):
            mended.append(each)
    return mended
