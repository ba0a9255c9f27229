"""What hosts give away one by one, and who holds it: read, claimed and given back.

Every transaction that changes anything of a host locks it first (`lock`), after the providers in placement
if it books there too: so claims of one host never interleave, and nobody waits in a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, select, update

from kilonova.db.engine import Row, Statement, Tx, insert_into
from kilonova.db.tables.host_resources import host_claims, host_items, host_topologies, pci_devices
from kilonova.errors import Conflict
from kilonova.model.host_resources import Claim, HostResources, Item
from kilonova.model.numa import GuestTopology, HostTopology
from kilonova.model.pci import HeldDevice, PciDevice, PciHolding, PciRequest

_h, _d, _i, _c = host_topologies.c, pci_devices.c, host_items.c, host_claims.c

_LOCK = Statement(
    update(host_topologies)
    .where(_h.compute_id == bindparam("of"))
    .values(generation=_h.generation + 1)
    .returning(_h.generation, _h.topology)
)
_GENERATIONS = Statement(select(_h.compute_id, _h.generation))
_FORGET = tuple(
    Statement(delete(table).where(table.c.compute_id == bindparam("of")))
    for table in (host_topologies, pci_devices, host_items)
)
_HOST = Statement(select(_h.generation, _h.topology).where(_h.compute_id == bindparam("of")))
_GUESTS = Statement(select(_c.numa).where(_c.compute_id == bindparam("of"), _c.numa.is_not(None)))
_DEVICES = Statement(
    select(_d.device, _d.holder, _d.reported).where(_d.compute_id == bindparam("of")).order_by(_d.address)
)
_HELD_DEVICES = Statement(
    select(_d.address, _d.holder)
    .where(_d.compute_id == bindparam("of"), _d.holder.is_not(None))
    .order_by(_d.address)
)
_ALL_HOSTS = select(_h.compute_id, _h.generation, _h.topology)
_ALL_GUESTS = select(_c.compute_id, _c.numa).where(_c.numa.is_not(None))
_ALL_DEVICES = select(_d.compute_id, _d.device, _d.holder, _d.reported).order_by(_d.address)
_FREE_ITEMS = Statement(
    select(_i.item)
    .where(
        _i.compute_id == bindparam("of"),
        _i.provider == bindparam("provider"),
        _i.resource_class == bindparam("resource_class"),
        _i.holder.is_(None),
        _i.reported,
    )
    .order_by(_i.identifier)
)
_LISTED = Statement(select(_i.provider, _i.resource_class).where(_i.compute_id == bindparam("of")).distinct())
_fields = Claim.__struct_fields__
_claim_columns = [host_claims.c[name] for name in _fields]
_CLAIM = Statement(select(*_claim_columns).where(_c.consumer == bindparam("consumer")))
_OF_INSTANCE = Statement(select(*_claim_columns).where(_c.instance_uuid == bindparam("instance_uuid")))
_ALL_CLAIMS = Statement(select(*_claim_columns).order_by(_c.consumer))
_ADD_CLAIM = insert_into(host_claims)
_PLACE = Statement(select(_c.compute_id).where(_c.consumer == bindparam("consumer")))
_DROP_CLAIM = Statement(delete(host_claims).where(_c.consumer == bindparam("of")))
_RENAME = Statement(
    update(host_claims).where(_c.consumer == bindparam("of")).values(consumer=bindparam("to"))
)
_RENAME_HELD = tuple(
    Statement(update(table).where(table.c.holder == bindparam("of")).values(holder=bindparam("to")))
    for table in (pci_devices, host_items)
)
_TAKE_DEVICE = Statement(
    update(pci_devices)
    .where(_d.compute_id == bindparam("of"), _d.address == bindparam("at"), _d.holder.is_(None))
    .values(holder=bindparam("new_holder"))
)
_TAKE_ITEM = Statement(
    update(host_items)
    .where(
        _i.compute_id == bindparam("of"),
        _i.provider == bindparam("at"),
        _i.resource_class == bindparam("named"),
        _i.identifier == bindparam("number"),
        _i.holder.is_(None),
    )
    .values(holder=bindparam("new_holder"))
)
_one_device = (_d.compute_id == bindparam("of"), _d.address == bindparam("at"))
_DROP_VANISHED_DEVICE = Statement(delete(pci_devices).where(*_one_device, ~_d.reported))
_GIVE_DEVICE = Statement(update(pci_devices).where(*_one_device).values(holder=None))
_CHANGE = Statement(
    update(host_claims)
    .where(_c.consumer == bindparam("of"))
    .values({name: bindparam(f"new_{name}") for name in ("requests", "holdings", "devices")})
)
_DROP_VANISHED = tuple(
    Statement(delete(table).where(table.c.holder == bindparam("of"), ~table.c.reported))
    for table in (pci_devices, host_items)
)
_GIVE = tuple(
    Statement(update(table).where(table.c.holder == bindparam("of")).values(holder=None))
    for table in (pci_devices, host_items)
)

_encode = msgspec.json.Encoder().encode
_topology = msgspec.json.Decoder(HostTopology).decode
_guest = msgspec.json.Decoder(GuestTopology).decode
_device = msgspec.json.Decoder(PciDevice).decode
_item = msgspec.json.Decoder(Item).decode
_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    "numa": msgspec.json.Decoder(GuestTopology),
    "requests": msgspec.json.Decoder(tuple[PciRequest, ...]),
    "holdings": msgspec.json.Decoder(tuple[PciHolding, ...]),
    "devices": msgspec.json.Decoder(tuple[PciDevice, ...]),
    "items": msgspec.json.Decoder(tuple[Item, ...]),
}


def encoded(record: Any) -> str:
    return _encode(record).decode()


def lock(tx: Tx, compute_id: str) -> bool:
    """Keep others from changing this host until the transaction ends; False: it has nothing of the kind."""
    return tx.one(_LOCK, of=compute_id) is not None


def read(tx: Tx, compute_id: str) -> HostResources:
    """One host; one that has reported nothing of the kind has nothing."""
    row = tx.one(_HOST, of=compute_id)
    if row is None:
        return HostResources(compute_id=compute_id)
    return HostResources(
        compute_id=compute_id,
        generation=row[0],
        topology=None if row[1] is None else _topology(row[1]),
        guests=tuple(_guest(numa) for (numa,) in tx.all(_GUESTS, of=compute_id)),
        devices=tuple(_held(each) for each in tx.all(_DEVICES, of=compute_id)),
    )


def _held(row: Row) -> HeldDevice:
    return HeldDevice(device=_device(row[0]), holder=row[1], reported=bool(row[2]))


def generations(tx: Tx) -> dict[str, int]:
    """Compute id -> generation, of every host that has anything of the kind: tells which to read again."""
    return {row[0]: row[1] for row in tx.all(_GENERATIONS)}


def read_many(tx: Tx, compute_ids: Sequence[str] | None = None) -> dict[str, HostResources]:
    """These hosts, or all, as far as they have anything of the kind: three statements."""

    def some(clause: Any, column: Any) -> Any:
        return clause if compute_ids is None else clause.where(column.in_(compute_ids))

    guests: dict[str, list[GuestTopology]] = {}
    for compute_id, numa in tx.all(some(_ALL_GUESTS, _c.compute_id)):
        guests.setdefault(compute_id, []).append(_guest(numa))
    devices: dict[str, list[HeldDevice]] = {}
    for compute_id, *rest in tx.all(some(_ALL_DEVICES, _d.compute_id)):
        devices.setdefault(compute_id, []).append(_held(tuple(rest)))
    return {
        compute_id: HostResources(
            compute_id=compute_id,
            generation=generation,
            topology=None if topology is None else _topology(topology),
            guests=tuple(guests.get(compute_id, ())),
            devices=tuple(devices.get(compute_id, ())),
        )
        for compute_id, generation, topology in tx.all(some(_ALL_HOSTS, _h.compute_id))
    }


def listed_classes(tx: Tx, compute_id: str) -> set[tuple[str, str]]:
    """Provider and resource class of what the host lists one by one."""
    return {(row[0], row[1]) for row in tx.all(_LISTED, of=compute_id)}


def free_items(tx: Tx, compute_id: str, provider: str, resource_class: str) -> list[Item]:
    rows = tx.all(_FREE_ITEMS, of=compute_id, provider=provider, resource_class=resource_class)
    return [_item(row[0]) for row in rows]


def _to_claim(row: Row) -> Claim:
    values = dict(zip(_fields, row, strict=True))
    for name, decoder in _decoders.items():
        if values[name] is not None:
            values[name] = decoder.decode(values[name])
    return Claim(**values)


def claim_of(tx: Tx, consumer: str) -> Claim | None:
    row = tx.one(_CLAIM, consumer=consumer)
    return None if row is None else _to_claim(row)


def claims_of_instance(tx: Tx, instance_uuid: str) -> list[Claim]:
    """Its own, and those that migrations keep for it."""
    return [_to_claim(row) for row in tx.all(_OF_INSTANCE, instance_uuid=instance_uuid)]


def all_claims(tx: Tx) -> list[Claim]:
    return [_to_claim(row) for row in tx.all(_ALL_CLAIMS)]


def devices_held(tx: Tx, compute_id: str) -> dict[str, tuple[str, ...]]:
    """Consumer -> addresses of the host's PCI devices that it holds."""
    found: dict[str, tuple[str, ...]] = {}
    for address, holder in tx.all(_HELD_DEVICES, of=compute_id):
        found[holder] = (*found.get(holder, ()), address)
    return found


def add(tx: Tx, claim: Claim) -> None:
    """Write a claim of a host that is locked.  Raises Conflict when somebody holds some of it."""
    values = {
        name: encoded(value) if name in _decoders and value is not None else value
        for name, value in ((name, getattr(claim, name)) for name in _fields)
    }
    tx.run(_ADD_CLAIM, **values)
    for device in claim.devices:
        taken = tx.run(_TAKE_DEVICE, of=claim.compute_id, at=device.address, new_holder=claim.consumer)
        _check_taken(taken, claim, f"device {device.address}")
    for item in claim.items:
        taken = tx.run(
            _TAKE_ITEM,
            of=claim.compute_id,
            at=item.provider,
            named=item.resource_class,
            number=item.identifier,
            new_holder=claim.consumer,
        )
        _check_taken(taken, claim, f"{item.resource_class} {item.identifier}")


def change(tx: Tx, before: Claim, after: Claim) -> None:
    """Exchange the devices of a claim, and what they were asked for by; its host is locked.

    Raises Conflict when somebody holds some of those that come.
    """
    names = ("requests", "holdings", "devices")
    tx.run(_CHANGE, of=before.consumer, **{f"new_{name}": encoded(getattr(after, name)) for name in names})
    old, new = ({each.address for each in claim.devices} for claim in (before, after))
    for address in sorted(old - new):
        for statement in (_DROP_VANISHED_DEVICE, _GIVE_DEVICE):
            tx.run(statement, of=before.compute_id, at=address)
    for address in sorted(new - old):
        taken = tx.run(_TAKE_DEVICE, of=before.compute_id, at=address, new_holder=before.consumer)
        _check_taken(taken, after, f"device {address}")


def _check_taken(taken: int, claim: Claim, what: str) -> None:
    if taken != 1:
        raise Conflict(f"The {what} of the host {claim.compute_id} is not free for {claim.consumer}.")


def drop(tx: Tx, consumer: str) -> bool:
    """Give back what a consumer holds; False when it holds nothing.  Locks the host."""
    compute_id = tx.scalar(_PLACE, consumer=consumer)
    if compute_id is None:
        return False
    lock(tx, compute_id)
    if not tx.run(_DROP_CLAIM, of=consumer):  # somebody was faster
        return False
    for statement in (*_DROP_VANISHED, *_GIVE):
        tx.run(statement, of=consumer)
    return True


def rename(tx: Tx, consumer: str, to: str) -> bool:
    """Hand a consumer's claim to another one; False when it has none."""
    compute_id = tx.scalar(_PLACE, consumer=consumer)
    if compute_id is None:
        return False
    lock(tx, compute_id)
    if not tx.run(_RENAME, of=consumer, to=to):
        return False
    for statement in _RENAME_HELD:
        tx.run(statement, of=consumer, to=to)
    return True


def forget(tx: Tx, compute_id: str) -> None:
    """A host is gone, and what it had with it; what is claimed there stays for the audit to tell."""
    for statement in _FORGET:
        tx.run(statement, of=compute_id)
