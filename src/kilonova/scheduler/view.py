"""The view of all hosts that decisions are made on: brought up to date by what has changed, never exact.

What this process books is counted at once.  What others do is heard of at the next look, so a claim may be
lost to them; the database decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache

import msgspec
import numpy as np

from kilonova.clock import SECOND, Clock
from kilonova.db import scheduling
from kilonova.db.engine import Database, Tx
from kilonova.db.placement_view import Summary
from kilonova.db.scheduling import HostNews, ProviderNews
from kilonova.model.instance import ImageMeta
from kilonova.scheduler.columns import NO_INVENTORY, Columns, Provision, Whole
from kilonova.scheduler.options import Options

FRESH = SECOND  # how old the view may be
_NOTHING = Provision(inventories=NO_INVENTORY, used={})


class HostView:
    """``columns`` are what is known; ``elsewhere`` are the resource classes and traits that providers have
    which are no host themselves: below a host, or shared."""

    def __init__(self, db: Database, clock: Clock, options: Options, top: Database | None = None) -> None:
        """``db`` is that of the cell; ``top`` that of placement and aggregates, if it is another one."""
        self._db = db
        self._top = db if top is None else top
        self._clock = clock
        self._options = options
        self._one_at_a_time = asyncio.Lock()
        self._begun = 0  # looks
        self._read_at = 0
        self._heard_at = 0
        self._told = 0  # how often we were told that the view is out of date
        self.looks = 0
        self.columns = Columns(options.default_zone)
        self.elsewhere: frozenset[str] = frozenset()
        self.heavy_elsewhere: Mapping[str, int] = {}  # host -> what other databases' servers do there
        self._host_news: HostNews | None = None
        self._provider_news: ProviderNews | None = None
        self._host_revisions: dict[str, int] = {}
        self._revisions: dict[str, int] = {}  # of providers
        self._doubtful: set[str] = set()
        self._others: dict[str, tuple[Summary, Provision]] = {}  # providers that are no hosts

    def forget(self) -> None:
        """Something about the hosts has changed: look again before the next decision."""
        self._read_at = 0
        self._told += 1

    @property
    def is_stale(self) -> bool:
        return abs(self._clock.now() - self._read_at) >= FRESH  # abs: clocks are set back, too

    async def current(self, *, anew: bool = False) -> Columns:
        """At most a second old; with ``anew`` as it is now."""
        begun = self._begun
        if anew or self.is_stale:
            async with self._one_at_a_time:
                # A look that was begun after we had asked will do; if not all must be new, any that is fresh.
                if self._begun == begun and (anew or self.is_stale):
                    self._begun += 1
                    await self._look(anew)
        return self.columns

    async def _look(self, anew: bool) -> None:
        now, told, doubtful = self._clock.now(), self._told, frozenset(self._doubtful)
        heard = anew or abs(now - self._heard_at) >= self._options.service_down_time * SECOND // 4

        def look_at_hosts(tx: Tx) -> HostNews:
            if self._host_news is None:
                return scheduling.all_hosts(tx)
            return scheduling.changed_hosts(tx, self._host_news, known=self._host_revisions, heard=heard)

        def look_at_providers(tx: Tx) -> ProviderNews:
            if self._provider_news is None:
                return scheduling.all_providers(tx)
            return scheduling.changed_providers(
                tx, self._provider_news, known=self._revisions, doubtful=doubtful
            )

        if self._top is self._db:
            hosts, providers = await self._db.read(lambda tx: (look_at_hosts(tx), look_at_providers(tx)))
        else:
            hosts = await self._db.read(look_at_hosts)
            providers = await self._top.read(look_at_providers)
        if hosts.heard is not None:
            self._heard_at = now
        self._apply_hosts(hosts)
        self._apply_providers(providers)
        self._doubtful -= doubtful
        await self._count_images()
        self.looks += 1
        self._read_at = now if told == self._told else 0

    # ---- what a look has told ----

    def _apply_hosts(self, news: HostNews) -> None:
        self._host_news = news
        columns = self.columns
        if news.ids is not None:
            for compute_id in columns.row_of_provider.keys() - news.ids:
                columns.drop(columns.row_of_provider[compute_id])
                self._host_revisions.pop(compute_id, None)
        self._host_revisions.update(news.revisions)
        for host in news.hosts:
            row = columns.put_host(host)
            early = self._others.pop(host.compute_id, None)
            if early is not None:  # placement knew it before we did
                columns.put_provision(row, early[1])
                self._count_elsewhere()
        for compute_id, moment in (news.heard or {}).items():
            known = columns.row_of_provider.get(compute_id)
            if known is not None:
                columns.last_seen[known] = moment
        columns.io_ops[:] = 0
        for name, count in (*news.heavy.items(), *self.heavy_elsewhere.items()):
            known = columns.row_of.get(name)
            if known is not None:
                columns.io_ops[known] += count

    def _apply_providers(self, news: ProviderNews) -> None:
        self._provider_news = news
        columns = self.columns
        if news.ids is not None:
            for uuid in self._revisions.keys() - news.ids:
                del self._revisions[uuid]
                self._doubtful.discard(uuid)
                row = columns.row_of_provider.get(uuid)
                if row is not None:
                    columns.put_provision(row, _NOTHING)
                if self._others.pop(uuid, None) is not None:
                    self._count_elsewhere()
        for each in news.providers:
            self._put_provider(each, _provision(each, news.consumers))
        if news.aggregates is not None:
            columns.put_aggregates(news.aggregates)

    def _put_provider(self, found: Summary, provision: Provision) -> None:
        uuid = found.provider.uuid
        self._revisions[uuid] = found.revision
        row = self.columns.row_of_provider.get(uuid)
        if row is not None:
            self.columns.put_provision(row, provision)
            return
        old = self._others.get(uuid)
        self._others[uuid] = found, provision
        if old is None or (old[0].stock.keys(), old[0].traits) != (found.stock.keys(), found.traits):
            self._count_elsewhere()

    def _count_elsewhere(self) -> None:
        names: set[str] = set()
        for _, provision in self._others.values():
            names.update(provision.inventories, provision.traits)
        self.elsewhere = frozenset(names)

    async def _count_images(self) -> None:
        """How many servers of which images each host has: only where a weigher wants to know."""
        key, columns = "image_props_weight_multiplier", self.columns
        if not self._options.multipliers.get(key) and not any(
            key in aggregate.metadata for aggregate in columns.aggregates
        ):
            return
        counts: dict[tuple[str, str], Whole] = {}
        for name, image, count in await self._db.read(scheduling.images_by_host):
            row = columns.row_of.get(name)
            for prop in () if row is None else _properties(image).items():
                column = counts.get(prop)
                if column is None:
                    column = counts[prop] = np.zeros(columns.room, np.int64)
                column[row] += count
        columns.images = counts

    # ---- what this process does itself ----

    def count(self, compute_id: str, resources: Mapping[str, int]) -> None:
        """A server is about to be booked there."""
        row = self.columns.row_of_provider.get(compute_id)
        if row is not None:
            self.columns.count(row, resources)

    def booked(self, compute_id: str) -> None:
        """It was: that is the one change of the provider that need not be read."""
        if compute_id in self._revisions:
            self._revisions[compute_id] += 1

    def lost(self, compute_id: str, resources: Mapping[str, int]) -> None:
        """It was not: what is known of the provider is doubtful until the next look."""
        row = self.columns.row_of_provider.get(compute_id)
        if row is not None:
            self.columns.count(row, resources, -1)
        self._revisions[compute_id] = -1
        self._doubtful.add(compute_id)


@lru_cache(maxsize=256)
def _properties(image: str) -> dict[str, str]:
    """Of an image as it is kept with a server."""
    return msgspec.json.decode(image, type=ImageMeta).properties


def _provision(found: Summary, consumers: Mapping[str, int]) -> Provision:
    return Provision(
        inventories={name: stock.inventory for name, stock in found.stock.items()},
        used={name: stock.used for name, stock in found.stock.items()},
        traits=found.traits,
        instances=consumers.get(found.provider.uuid, 0),
    )
