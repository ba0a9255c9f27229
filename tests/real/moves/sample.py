"""The points that `make test` runs: each victim, sort of fault, kind of move and its phases is there."""

from __future__ import annotations

from tests.real.moves.kinds import ON_THE_WAY, Point

SAMPLE = [
    Point("live_migrate", ON_THE_WAY, "controller killed"),
    Point("live_migrate", "prepare", "disk of the destination full"),
    Point("live_migrate", "switch", "PostgreSQL stopped"),
    Point("live_migrate", "settle", "source loses power"),
    Point("resize", "park", "nats-server killed"),
    Point("resize", "copy", "link between the hosts slow"),
    Point("resize", ON_THE_WAY, "agent of the source killed"),
    Point("resize", "start", "libvirtd of the source stopped"),
    Point("revert_resize", "bind", "way to the destination cut"),
    Point("revert_resize", "start", "libvirtd of the destination killed"),
    Point("confirm_resize", "drop", "way to the source loses answers"),
    Point("evacuate", "prepare", "agent of the destination stopped"),
    Point("evacuate", "fence", "destination loses power"),
]
