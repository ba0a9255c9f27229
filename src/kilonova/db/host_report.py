"""Taking over what a host reports of its cells, devices and listed items.

What is claimed stays claimed: a device that vanishes under a server is kept and told of, as Nova keeps it,
and cells that shrink below what guests hold are taken over and told of.
"""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects.postgresql import insert as insert_unless_there

from kilonova.db.engine import Statement, Tx, insert_into
from kilonova.db.host_resources import encoded, lock
from kilonova.db.tables.host_resources import host_items, host_topologies, pci_devices
from kilonova.errors import Conflict
from kilonova.model.host import HostReport
from kilonova.model.host_resources import Item
from kilonova.model.pci import PciDevice

_h, _d, _i = host_topologies.c, pci_devices.c, host_items.c

_ADD_HOST = Statement(
    insert_unless_there(host_topologies)
    .values({column.name: bindparam(column.name) for column in host_topologies.columns})
    .on_conflict_do_nothing()
)
_TOPOLOGY = Statement(select(_h.topology).where(_h.compute_id == bindparam("of")))
_SET_TOPOLOGY = Statement(
    update(host_topologies).where(_h.compute_id == bindparam("of")).values(topology=bindparam("new"))
)
_DEVICES = Statement(
    select(_d.address, _d.device, _d.holder, _d.reported).where(_d.compute_id == bindparam("of"))
)
_ADD_DEVICE = insert_into(pci_devices)
_SET_DEVICE = Statement(
    update(pci_devices)
    .where(_d.compute_id == bindparam("of"), _d.address == bindparam("at"))
    .values(device=bindparam("new"), reported=bindparam("there"))
)
_DROP_DEVICE = Statement(
    delete(pci_devices).where(_d.compute_id == bindparam("of"), _d.address == bindparam("at"))
)
_ITEMS = Statement(
    select(_i.provider, _i.resource_class, _i.identifier, _i.item, _i.holder).where(
        _i.compute_id == bindparam("of")
    )
)
_ADD_ITEM = insert_into(host_items)
_an_item = (
    _i.compute_id == bindparam("of"),
    _i.provider == bindparam("of_provider"),
    _i.resource_class == bindparam("of_class"),
    _i.identifier == bindparam("of_identifier"),
)
_SET_ITEM = Statement(update(host_items).where(*_an_item).values(item=bindparam("new")))
_DROP_ITEM = Statement(delete(host_items).where(*_an_item))

_device = msgspec.json.Decoder(PciDevice).decode


def take_over(tx: Tx, report: HostReport) -> list[str]:
    """What has changed under servers that hold it; empty when all is well.

    What they hold and the host has no more is told by `kilonova.resources.shortfalls`.

    A host that has nothing of the kind and never had costs one statement, and one of which all is known
    already three; its generation stays (RT-24).  Raises Conflict when an item is
    not reported any more that a server holds (RT-23): nothing is changed then.
    """
    compute_id = report.compute_id
    topology = None if report.numa is None else encoded(report.numa)
    known = tx.one(_TOPOLOGY, of=compute_id)
    if known is None:
        if topology is None and not report.pci_devices and not report.items:
            return []
        tx.run(_ADD_HOST, compute_id=compute_id, generation=0, topology=topology)
    elif known[0] == topology and _is_as_known(tx, report):
        return []
    lock(tx, compute_id)
    if tx.scalar(_TOPOLOGY, of=compute_id) != topology:
        tx.run(_SET_TOPOLOGY, of=compute_id, new=topology)
    _take_items(tx, compute_id, report.items)
    return _take_devices(tx, compute_id, report.pci_devices)


def _is_as_known(tx: Tx, report: HostReport) -> bool:
    devices = {row[0]: (row[1], bool(row[3])) for row in tx.all(_DEVICES, of=report.compute_id)}
    if devices != {each.address: (encoded(each), True) for each in report.pci_devices}:
        return False
    items = {tuple(row[:3]): row[3] for row in tx.all(_ITEMS, of=report.compute_id)}
    told = {(each.provider, each.resource_class, each.identifier): encoded(each) for each in report.items}
    return items == told


def _take_devices(tx: Tx, compute_id: str, devices: tuple[PciDevice, ...]) -> list[str]:
    """New ones are added; those that vanished go when they are free."""
    warnings = []
    known = {row[0]: row for row in tx.all(_DEVICES, of=compute_id)}
    new: list[dict[str, Any]] = []
    for device in devices:
        text = encoded(device)
        row = known.pop(device.address, None)
        if row is None:
            new.append({"compute_id": compute_id, "address": device.address, "device": text})
        elif row[2] is not None and _is_another(_device(row[1]), device):
            warnings.append(
                f"the PCI device {device.address} has become {device.vendor_id}:{device.product_id} "
                f"({device.kind}) while {row[2]} holds what it was"
            )
        elif (row[1], bool(row[3])) != (text, True):
            tx.run(_SET_DEVICE, of=compute_id, at=device.address, new=text, there=True)
    tx.run_many(_ADD_DEVICE, [{**values, "holder": None, "reported": True} for values in new])
    for address, text, holder, reported in known.values():
        if holder is None:
            tx.run(_DROP_DEVICE, of=compute_id, at=address)
            continue
        if reported:
            tx.run(_SET_DEVICE, of=compute_id, at=address, new=text, there=False)
    return warnings


def _is_another(before: PciDevice, now: PciDevice) -> bool:
    return any(
        getattr(before, name) != getattr(now, name) for name in ("vendor_id", "product_id", "kind", "parent")
    )


def _take_items(tx: Tx, compute_id: str, items: tuple[Item, ...]) -> None:
    known = {tuple(row[:3]): (row[3], row[4]) for row in tx.all(_ITEMS, of=compute_id)}
    new: list[dict[str, Any]] = []
    for item in items:
        text, key = encoded(item), (item.provider, item.resource_class, item.identifier)
        before = known.pop(key, None)
        if before is None:
            new.append(
                {
                    "compute_id": compute_id,
                    "provider": item.provider,
                    "resource_class": item.resource_class,
                    "identifier": item.identifier,
                    "item": text,
                    "holder": None,
                    "reported": True,
                }
            )
        elif before[0] != text:
            tx.run(_SET_ITEM, new=text, **_place_of(compute_id, key))
    lost = {key: holder for key, (_, holder) in known.items() if holder is not None}
    if lost:
        told = ", ".join(f"{key[1]} {key[2]} (held by {holder})" for key, holder in sorted(lost.items()))
        raise Conflict(
            f"Resources that servers hold are not configured any more: {told}.  Bring them back, or remove "
            "the servers first."
        )
    for key in known:
        tx.run(_DROP_ITEM, **_place_of(compute_id, key))
    tx.run_many(_ADD_ITEM, new)


def _place_of(compute_id: str, key: tuple[Any, ...]) -> dict[str, str]:
    return {"of": compute_id, "of_provider": key[0], "of_class": key[1], "of_identifier": key[2]}
