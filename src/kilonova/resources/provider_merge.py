"""Adding what an operator has configured (`provider_config`) to the providers that a driver has told."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from kilonova.errors import Failed
from kilonova.resources.provider_config import COMPUTE_NODE, ProviderExtra
from kilonova.resources.provider_tree import ProviderTree

log = structlog.get_logger("kilonova.resources")

NODE_TRAIT = "COMPUTE_NODE"


class ProviderExtras:
    """The operator's additions; which of them meet no provider is said once."""

    def __init__(self, extras: Iterable[ProviderExtra]) -> None:
        self._extras = tuple(extras)
        self._missed: set[str] = set()

    def add_to(self, tree: ProviderTree) -> None:
        """Raises Failed when a provider is meant twice, or has what is to be added; then nothing is added."""
        found = self._by_provider(tree)
        for uuid, extra in found.items():
            _check_new(tree, uuid, extra)
        for uuid, extra in found.items():
            tree.update_inventory(uuid, {**tree.snapshot(uuid).inventory, **extra.inventories})
            tree.add_traits(uuid, *extra.traits)

    def _by_provider(self, tree: ProviderTree) -> dict[str, ProviderExtra]:
        found: dict[str, ProviderExtra] = {}
        for extra in self._extras:
            if extra.uuid == COMPUTE_NODE:
                continue
            uuid = _meant(tree, extra)
            if uuid is None:
                self._miss(extra)
            elif uuid in found:
                other = found[uuid]
                raise Failed(
                    f"The provider {uuid} is configured by {other.shown} in {other.source} and by "
                    f"{extra.shown} in {extra.source}: keep one of them."
                )
            else:
                found[uuid] = extra
        for extra in self._extras:
            if extra.uuid == COMPUTE_NODE:
                found |= {uuid: extra for uuid in _nodes(tree) if uuid not in found}
        return found

    def _miss(self, extra: ProviderExtra) -> None:
        if extra.shown not in self._missed:
            self._missed.add(extra.shown)
            log.warning("a provider that is configured is not there", provider=extra.shown, file=extra.source)


def _meant(tree: ProviderTree, extra: ProviderExtra) -> str | None:
    """A uuid is no name, nor the other way round."""
    for uuid in tree.uuids():
        if uuid == extra.uuid or (extra.name is not None and tree.snapshot(uuid).name == extra.name):
            return uuid
    return None


def _nodes(tree: ProviderTree) -> list[str]:
    """The roots that are compute nodes."""
    return [
        uuid
        for uuid in tree.uuids()
        if tree.snapshot(uuid).parent is None and tree.has_traits(uuid, [NODE_TRAIT])
    ]


def _check_new(tree: ProviderTree, uuid: str, extra: ProviderExtra) -> None:
    known = tree.snapshot(uuid)
    taken = sorted({*extra.inventories} & {*known.inventory} | {*extra.traits} & known.traits)
    if taken:
        raise Failed(
            f"{extra.source} adds {', '.join(taken)} to the provider '{known.name}', which has them from its "
            "driver: take them out of the file."
        )
