"""What a host says of itself, and what the scheduler reads of all hosts."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import bindparam, select, update

from kilonova.db import placement_providers as providers
from kilonova.db.engine import Statement, Tx
from kilonova.db.tables.placement import resource_providers
from kilonova.errors import Conflict, NotFound
from kilonova.model.host import Inventory, ProviderReport

_p = resource_providers
_REPORTED = Statement(
    update(_p).where(_p.c.uuid == bindparam("of"), _p.c.reported.is_(False)).values(reported=True)
)
_LOCK = Statement(select(_p.c.uuid).where(_p.c.uuid == bindparam("of")).with_for_update())
_WHOSE = Statement(
    select(_p.c.name, _p.c.parent, _p.c.root, _p.c.reported).where(_p.c.uuid == bindparam("of"))
)
_TREE = Statement(select(_p.c.uuid, _p.c.parent, _p.c.reported).where(_p.c.root == bindparam("root")))


def report(tx: Tx, wanted: ProviderReport) -> providers.Provider:
    """Make a provider have these inventories, traits and aggregates; custom traits that an operator gave it
    stay.

    The generation moves only if something changed.  Less than is in use may be left, as in Placement: then
    nothing fits until there is room again.  Raises InventoryInUse when a class would go that is in use,
    DuplicateName, Invalid (a parent that is not there, or below).
    """
    provider = _provider(tx, wanted)
    uuid = wanted.uuid
    custom = {each for each in providers.traits_of.of(tx, uuid) if each.startswith("CUSTOM_")}
    moved = providers.set_stock(tx, uuid, _with_old_ratios(tx, wanted))
    moved = providers.traits_of.replace(tx, uuid, {*wanted.traits, *custom}) or moved
    if wanted.aggregates is not None:
        moved = providers.aggregates_of.replace(tx, uuid, wanted.aggregates) or moved
    tx.run(_REPORTED, of=uuid)
    return providers.bump(tx, provider) if moved else provider


def _provider(tx: Tx, wanted: ProviderReport) -> providers.Provider:
    """The provider with the name and the parent of a report, locked."""
    try:
        provider = providers.lock(tx, wanted.uuid)
    except NotFound:
        return _created(tx, wanted)
    parent = wanted.parent or provider.parent  # a root of ours may be below what others have made
    if (provider.name, provider.parent) != (wanted.name, parent):
        return providers.change(tx, wanted.uuid, wanted.name, parent, reparent=True)
    return provider


def _created(tx: Tx, wanted: ProviderReport) -> providers.Provider:
    """A new provider, or the one that somebody else has just made.  Raises DuplicateName."""
    try:
        return providers.create(tx, wanted.uuid, wanted.name, wanted.parent, reported=True)
    except providers.DuplicateName:
        if not providers.select_where(tx, resource_providers.c.uuid == wanted.uuid):
            raise
        return providers.lock(tx, wanted.uuid)


def _with_old_ratios(tx: Tx, wanted: ProviderReport) -> dict[str, Inventory]:
    """The inventories of a report; where its ratio is for a new record only, an old one keeps its own."""
    if not wanted.initial_ratios:
        return wanted.inventories
    old = providers.stock(tx, wanted.uuid)
    return {
        name: msgspec.structs.replace(each, allocation_ratio=old[name].inventory.allocation_ratio)
        if name in wanted.initial_ratios and name in old
        else each
        for name, each in wanted.inventories.items()
    }


def report_tree(tx: Tx, wanted: Sequence[ProviderReport]) -> list[str]:
    """Make a whole tree be as it is reported, parents before their children.

    Providers below what is reported that were reported before and are not any more go away, but for those
    that somebody holds something of, and those above them: their uuids are the answer.  What others have put
    into the tree by the API stays.  Raises what ``report`` does, and Conflict for what is another host's.
    """
    named = {each.uuid for each in wanted}
    for uuid in sorted(named):  # in the order in which all take locks
        tx.one(_LOCK, of=uuid)
    check_ownership(tx, wanted)
    for each in wanted:
        report(tx, each)
    left: dict[str, str | None] = {}
    for each in wanted:
        if each.parent not in named:
            left |= _reported_below(tx, each.uuid)
    for uuid in named:
        left.pop(uuid, None)
    return [uuid for uuid in _leaves_first(left) if not _removed(tx, uuid)]


def check_ownership(tx: Tx, wanted: Sequence[ProviderReport]) -> None:
    """A host speaks of its own tree: it takes no providers of others into it, puts none into theirs, and does
    not tell what they have.  Raises Conflict."""
    top, named = wanted[0], {each.uuid for each in wanted}
    known = _known(tx, top.uuid)
    above = _known(tx, known.parent) if known is not None and known.parent and top.parent is None else None
    if known is not None and above is not None and above.reported:
        raise _others(top.uuid, known.name)
    # One that is being made by somebody else at this moment is ours when it is seen under our top.
    own = {top.uuid, None if known is None else known.root}
    for each in wanted[1:]:
        for uuid in {each.uuid, each.parent or each.uuid}:
            found = _known(tx, uuid)
            if found is not None and found.root not in own and not (uuid == each.parent and uuid in named):
                raise _others(uuid, found.name)


def _others(uuid: str, name: str) -> Conflict:
    return Conflict(f"The resource provider {uuid} ({name}) is in the tree of another host.")


class _Known(msgspec.Struct, frozen=True):
    name: str
    parent: str | None
    root: str
    reported: bool


def _known(tx: Tx, uuid: str) -> _Known | None:
    row = tx.one(_WHOSE, of=uuid)
    return None if row is None else _Known(row[0], row[1], row[2], bool(row[3]))


def _reported_below(tx: Tx, top: str) -> dict[str, str | None]:
    """Reported provider -> its parent."""
    provider = providers.show(tx, top)
    below = providers.below(tx, provider)
    return {
        uuid: parent
        for uuid, parent, reported in tx.all(_TREE, root=provider.root)
        if reported and uuid in below
    }


def _leaves_first(parents: dict[str, str | None]) -> list[str]:
    def depth(uuid: str | None) -> int:
        return 0 if uuid not in parents else 1 + depth(parents[uuid])

    return sorted(parents, key=lambda uuid: (-depth(uuid), uuid))


def _removed(tx: Tx, uuid: str) -> bool:
    try:
        providers.remove(tx, uuid)
    except (providers.HasChildren, providers.ProviderInUse):
        return False
    return True


_NAMES = {"trait": providers.traits_of, "aggregate": providers.aggregates_of}


def put(tx: Tx, uuid: str, kind: str, name: str, present: bool) -> None:
    """Whether a provider has one trait, or is in one aggregate.  Raises NotFound."""
    provider, names = providers.lock(tx, uuid), _NAMES[kind]
    found = names.of(tx, uuid)
    if names.replace(tx, uuid, found | {name} if present else found - {name}):
        providers.bump(tx, provider)
