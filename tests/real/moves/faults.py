"""What may happen to whom while a server moves, and how it is over again.

A fault is a victim and what is done to it.  ``words``: one of these has to be in the reason of a move that
has failed by it, so that whoever reads it knows where to look.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kilonova.testing.fleet.daemon import Daemon
from kilonova.testing.lab.cloud import LabCloud
from kilonova.testing.lab.host import Host


@dataclass(frozen=True)
class Ends:
    """Of a move, and the cloud of both."""

    cloud: LabCloud
    source: Host
    target: Host

    def host(self, end: str) -> Host:
        return self.source if end == "source" else self.target


Act = Callable[[Ends], Awaitable[object]]


@dataclass(frozen=True)
class Fault:
    """``outage``: seconds for which it lasts in the whole matrix; ``brief``: in the sample."""

    victim: str
    kind: str
    begin: Act
    end: Act
    words: str
    outage: float = 2.0
    brief: float = 1.5

    @property
    def name(self) -> str:
        return f"{self.victim} {self.kind}"

    @property
    def sort(self) -> str:
        """Whatever it is that is lost in one direction."""
        one_way = self.kind.startswith("loses") and not self.power_lost
        return "one way" if one_way else self.kind

    @property
    def power_lost(self) -> bool:
        return self.kind == "loses power"


LONG = 10.0  # longer than anybody's patience with silence (`rpc.calls.SILENCE`, `service_down_time`)
SLOW = 2  # Mbit a second
HOSTS = ("source", "destination")
AWAY = r"host\d|does not answer|silent|reach|answer|superseded|restart|agent"


def _killed(victim: str, find: Callable[[Ends], Daemon], back: Act, words: str) -> list[Fault]:
    """Killed and started anew, and stopped for a while."""

    async def kill(ends: Ends) -> None:
        await find(ends).kill()

    async def pause(ends: Ends) -> None:
        find(ends).pause()

    async def resume(ends: Ends) -> None:
        find(ends).resume()

    return [
        Fault(victim, "killed", kill, back, words),
        Fault(victim, "stopped", pause, resume, words, LONG),
    ]


def _central() -> list[Fault]:
    return [
        *_killed(
            "controller",
            lambda ends: ends.cloud.controller,
            lambda ends: ends.cloud.controller.start(b"ready"),
            "",
        ),
        *_killed(
            "nats-server", lambda ends: ends.cloud.fleet.nats, lambda ends: ends.cloud.fleet.nats.up(), AWAY
        ),
        *_killed(
            "PostgreSQL",
            lambda ends: ends.cloud.fleet.postgres,
            lambda ends: ends.cloud.fleet.postgres.up(),
            "",
        ),
    ]


def _of_host(end: str) -> list[Fault]:
    """Its agent, libvirtd, power, and the way between it and the controllers."""

    async def lose_power(ends: Ends) -> None:
        await ends.host(end).power_off()

    async def have_power(ends: Ends) -> None:
        await ends.host(end).power_on()
        await ends.cloud.start_agent(ends.host(end))

    return [
        *_killed(
            f"agent of the {end}",
            lambda ends: ends.cloud.agents[ends.host(end).name],
            lambda ends: ends.cloud.start_agent(ends.host(end)),
            AWAY,
        ),
        *_killed(
            f"libvirtd of the {end}",
            lambda ends: ends.host(end).daemons["libvirtd"],
            lambda ends: ends.host(end).start_libvirtd(),
            AWAY + "|libvirt|socket|connect|refused|keepalive|operation failed",
        ),
        Fault(
            end,
            "loses power",
            lose_power,
            have_power,
            AWAY + "|libvirt|socket|connect|refused|power|is off",
            LONG,
            8.0 if end == "source" else 1.5,  # the source is not waited for once it is known to be down
        ),
        _cut(f"way to the {end}", "cut", lambda ends: [(None, ends.host(end)), (ends.host(end), None)]),
        _cut(f"way to the {end}", "loses commands", lambda ends: [(None, ends.host(end))]),
        _cut(f"way to the {end}", "loses answers", lambda ends: [(ends.host(end), None)]),
    ]


Pairs = Callable[[Ends], list[tuple[Host | None, Host | None]]]


def _cut(victim: str, kind: str, pairs: Pairs) -> Fault:
    async def begin(ends: Ends) -> None:
        for source, target in pairs(ends):
            ends.cloud.lab.cut(source, target, both=False)

    async def end(ends: Ends) -> None:
        ends.cloud.lab.heal()

    return Fault(victim, kind, begin, end, AWAY + "|connect|timed out|transfer|libvirt|monitor", LONG)


def _between() -> list[Fault]:
    async def slow(ends: Ends) -> None:
        ends.cloud.lab.slow(ends.source, SLOW)
        ends.cloud.lab.slow(ends.target, SLOW)

    async def fast(ends: Ends) -> None:
        ends.cloud.lab.slow(ends.source, None)
        ends.cloud.lab.slow(ends.target, None)

    link = "link between the hosts"
    return [
        _cut(link, "cut", lambda ends: [(ends.source, ends.target), (ends.target, ends.source)]),
        _cut(link, "loses what is sent", lambda ends: [(ends.source, ends.target)]),
        _cut(link, "loses what comes back", lambda ends: [(ends.target, ends.source)]),
        Fault(link, "slow", slow, fast, AWAY, LONG),
    ]


def _disk() -> Fault:
    async def fill(ends: Ends) -> None:
        ends.target.fill_disk()

    async def free(ends: Ends) -> None:
        ends.target.free_disk()

    return Fault("disk of the destination", "full", fill, free, r"[Nn]o space|full|disk")


FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in [
        *_central(),
        *(fault for end in HOSTS for fault in _of_host(end)),
        *_between(),
        _disk(),
    ]
}
