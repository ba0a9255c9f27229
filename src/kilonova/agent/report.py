"""What an agent tells of its host: all of it at the start, and again when it has changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import structlog

from kilonova.agent import monitors
from kilonova.agent.inventory import StockOptions, as_given_out, stock_options
from kilonova.agent.monitors.contract import MonitoredHost
from kilonova.clock import SECOND, Clock
from kilonova.model.host import HostReport, ProviderReport
from kilonova.resources.provider_config import load
from kilonova.resources.provider_merge import ProviderExtras
from kilonova.resources.provider_tree import ProviderTree, from_reports, inventories
from kilonova.virt.driver import Driver

if TYPE_CHECKING:
    from kilonova.settings import Settings

log = structlog.get_logger("kilonova.agent")

_OF_THE_TREE = frozenset({"inventories", "traits", "providers"})
_NO_NEWS = frozenset({"metrics", "started_at", "starting"})

Tell = Callable[[HostReport], Awaitable[object]]


class ReportOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``refresh`` is in seconds, 0 for never.  ``resume_guests``: see HostReport."""

    stock: StockOptions = StockOptions()
    refresh: int = 0
    resume_guests: bool = False


class HostReports:
    """Looks at the host and remembers what was told of it.

    ``details`` are what others than the driver have to say of it.
    """

    def __init__(
        self,
        driver: Driver,
        clock: Clock,
        options: ReportOptions,
        extras: ProviderExtras,
        metrics: monitors.Monitors,
    ) -> None:
        self._driver = driver
        self._clock = clock
        self._options = options
        self._extras = extras
        self._monitors = metrics
        self.details: dict[str, str] = {}
        self._latest: HostReport | None = None
        self._told: HostReport | None = None
        self._told_at = 0

    @property
    def latest(self) -> HostReport:
        """What was seen at the last look."""
        assert self._latest is not None, "nobody has looked at the host yet"
        return self._latest

    async def first(self) -> HostReport:
        """Look at the host when its agent starts.

        Raises Failed for options that do not fit it, and for a driver that does not tell what is needed.
        """
        report = await self._look()
        self._told, self._told_at = report, self._clock.now()
        return msgspec.structs.replace(report, starting=True, resume_guests=self._options.resume_guests)

    async def tell_news(self, tell: Tell) -> bool:
        """Look again, and tell if there is anything to tell: whether there was.

        What could not be told is news the next time.
        """
        report = await self._look()
        changed = changes(self._told, report)
        if changed:
            log.info("this host has changed", host=report.host, what=changed)
        refresh = self._options.refresh
        due = refresh > 0 and self._clock.now() - self._told_at >= refresh * SECOND
        if not (changed or report.metrics or due):
            return False
        await tell(report)
        self._told, self._told_at = report, self._clock.now()
        return True

    async def _look(self) -> HostReport:
        found = as_given_out(await self._driver.report(), self._options.stock)
        tree = from_reports(found.tree)
        self._extras.add_to(tree)
        node = tree.snapshot(found.compute_id)
        self._latest = msgspec.structs.replace(
            found,
            inventories=inventories(node),
            traits=tuple(sorted(node.traits)),
            providers=_below(found, tree),
            details={**found.details, **self.details},
            metrics=await self._monitors.collect(),
        )
        return self._latest


def _below(found: HostReport, tree: ProviderTree) -> tuple[ProviderReport, ...]:
    """All providers but the compute node's own, parents before their children."""
    said = {each.uuid: each for each in found.providers}
    known = {uuid: tree.snapshot(uuid) for uuid in tree.uuids() if uuid in said}
    return tuple(
        msgspec.structs.replace(said[uuid], inventories=inventories(each), traits=tuple(sorted(each.traits)))
        for uuid, each in known.items()
    )


def changes(old: HostReport | None, new: HostReport) -> list[str]:
    """What is not as it was told: parts of the report, and providers by name.

    Metrics are always new, and times no news.
    """
    if old is None:
        return ["everything"]
    fields = [name for name in HostReport.__struct_fields__ if name not in _OF_THE_TREE | _NO_NEWS]
    parts = [name for name in fields if getattr(old, name) != getattr(new, name)]
    return parts + tree_changes(from_reports(old.tree), from_reports(new.tree))


def tree_changes(old: ProviderTree, new: ProviderTree) -> list[str]:
    """The names of providers that came, went, or have something else."""
    found = [old.snapshot(uuid).name for uuid in old.uuids() if not new.exists(uuid)]
    for uuid in new.uuids():
        now = new.snapshot(uuid)
        if not old.exists(uuid) or (
            (old.snapshot(uuid).name, old.snapshot(uuid).parent) != (now.name, now.parent)
            or old.has_inventory_changed(uuid, now.inventory)
            or old.have_traits_changed(uuid, now.traits)
            or old.have_aggregates_changed(uuid, now.aggregates)
        ):
            found.append(now.name)
    return found


def host_reports(driver: Driver, clock: Clock, settings: Settings) -> HostReports:
    """As the settings say.  Raises Failed for a provider configuration or a monitor that is wrong."""
    options = ReportOptions(
        stock=stock_options(settings),
        refresh=settings.number("resource_provider_association_refresh", "compute"),
        resume_guests=settings.flag("resume_guests_state_on_host_boot"),
    )
    extras = load(Path(settings.text("provider_config_location", "compute")))
    wanted = [str(name) for name in settings.listed("compute_monitors")]
    return HostReports(
        driver,
        clock,
        options,
        ProviderExtras(extras),
        monitors.load(MonitoredHost(driver, clock), wanted),
    )
