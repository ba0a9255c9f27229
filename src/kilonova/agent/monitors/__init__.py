"""Monitors: figures of a host that are stored with it, for the metrics weigher and for whoever looks.

Nova's plug-ins by its own rules: entry-point group ``nova.compute.monitors.cpu``, chosen by
``[DEFAULT]compute_monitors``, at most one of a type.  Our own ``virt_driver`` is there
without an entry point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any

import structlog

from kilonova.agent.monitors import virt_driver
from kilonova.agent.monitors.contract import Monitor, MonitoredHost
from kilonova.errors import Failed
from kilonova.model.host import Metric

log = structlog.get_logger("kilonova.agent")

KINDS = ("cpu",)
ENTRY_POINTS = "nova.compute.monitors"

Make = Callable[[MonitoredHost], Monitor]


class Plugin:
    """A monitor that could be loaded.  ``load`` gives what makes it."""

    def __init__(self, kind: str, name: str, load: Callable[[], Any]) -> None:
        self.kind, self.name, self.load = kind, name, load

    @property
    def shown(self) -> str:
        return f"{self.kind}.{self.name}"

    @property
    def spellings(self) -> set[str]:
        return {self.name, self.shown, f"{ENTRY_POINTS}.{self.shown}"}


def plugins() -> Iterator[Plugin]:
    """Ours, and those of the packages that are installed."""
    yield Plugin("cpu", "virt_driver", lambda: virt_driver.Monitor)
    for kind in KINDS:
        for each in sorted(metadata.entry_points(group=f"{ENTRY_POINTS}.{kind}"), key=lambda one: one.name):
            yield Plugin(kind, each.name, each.load)


class Monitors:
    """Those that are in use."""

    def __init__(self, loaded: Iterable[Monitor] = ()) -> None:
        self._loaded = tuple(loaded)

    async def collect(self) -> tuple[Metric, ...]:
        """What all of them see now.  One that fails is logged, and the others go on."""
        found: list[Metric] = []
        for monitor in self._loaded:
            seen: list[Metric] = []
            try:
                await monitor.add_metrics(seen)
            except Exception:
                log.error("a monitor failed", monitor=type(monitor).__module__, exc_info=True)
            else:
                found += seen
        return tuple(found)


def load(host: MonitoredHost, wanted: Iterable[str], known: Iterable[Plugin] | None = None) -> Monitors:
    """The monitors of ``[DEFAULT]compute_monitors``.

    Raises Failed for a plug-in that is wanted and cannot be loaded, or a name that is none's.
    """
    names = set(wanted)
    if not names:
        return Monitors()  # nobody looks through all packages for that
    missing = set(names)
    chosen: dict[str, tuple[Plugin, Monitor]] = {}
    for plugin in plugins() if known is None else known:
        missing -= plugin.spellings
        if not names & plugin.spellings:
            log.warning("a monitor is not chosen by compute_monitors", monitor=plugin.shown)
        elif plugin.kind in chosen:
            log.warning(
                "a second monitor of one type is left out",
                monitor=plugin.shown,
                loaded=chosen[plugin.kind][0].shown,
            )
        else:
            chosen[plugin.kind] = (plugin, _made(plugin, host))
    if missing:
        raise Failed(f"[DEFAULT]compute_monitors names {', '.join(sorted(missing))}, which is not installed.")
    return Monitors(monitor for _, monitor in chosen.values())


def _made(plugin: Plugin, host: MonitoredHost) -> Monitor:
    try:
        make: Make = plugin.load()
        return make(host)
    except Exception as error:
        raise Failed(f"The monitor {plugin.shown} cannot be loaded: {error}.") from error
