"""Zones of connection tracking: no two ports share one, and a restart keeps them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kilonova.l2agent.zones import Zones

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["of", "of", "release"]),
        st.sampled_from("abcdefgh"),
        st.none() | st.integers(1, 6),
        st.sets(st.integers(1, 6)),
    ),
    max_size=40,
)


@given(STEPS)
def test_no_two_ports_share_a_zone(steps: list[tuple[str, str, int | None, set[int]]]) -> None:
    zones = Zones()
    held: dict[str, int] = {}
    for verb, port, recorded, taken in steps:
        if verb == "release":
            zones.release(port)
            held.pop(port, None)
            continue
        zone, is_new = zones.of(port, recorded, taken)
        assert 1 <= zone <= 65535
        if port in held:
            assert (zone, is_new) == (held[port], False)
        elif recorded is not None and recorded not in held.values():
            assert (zone, is_new) == (recorded, False)
        else:
            assert is_new and zone not in taken  # what is written on another's port is not given away
        held[port] = zone
        assert len(set(held.values())) == len(held)


def test_a_released_zone_is_new_to_its_next_holder() -> None:
    zones = Zones()
    zone, _ = zones.of("a", None, set())
    zones.release("a")
    assert zones.of("b", None, set()) == (zone, True)
    assert zones.of("a", zone, {zone}) == (zone + 1, True)  # written on its port, but another's by now
    zones.release("nobody")
