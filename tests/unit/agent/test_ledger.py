"""What an agent remembers over its restarts."""

from __future__ import annotations

from pathlib import Path

from kilonova.agent.ledger import AHEAD, KEEP, Generations, Ledger
from kilonova.clock import SECOND
from kilonova.rpc.messages import Observed
from kilonova.testing.clock import VirtualClock

SEEN = Observed(uuid="g1", power_state=1, generation=7)


def test_results_are_kept_for_a_week(tmp_path: Path) -> None:
    clock, path = VirtualClock(), tmp_path / "ledger.db"
    ledger = Ledger(path, clock)
    assert ledger.result("1.1.reboot") is None
    ledger.record("1.1.reboot", SEEN)
    assert ledger.result("1.1.reboot") == SEEN
    assert ledger.result("1.2.reboot") is None
    ledger.close()
    clock.advance(KEEP // SECOND)
    ledger = Ledger(path, clock)
    assert ledger.result("1.1.reboot") == SEEN
    ledger.close()
    clock.advance(1)
    ledger = Ledger(path, clock)
    assert ledger.result("1.1.reboot") is None
    ledger.close()


def test_generations_rise_whatever_the_clock_does(tmp_path: Path) -> None:
    clock, path = VirtualClock(), tmp_path / "ledger.db"
    ledger = Ledger(path, clock)
    generations = Generations(clock, ledger)
    given = [generations.next() for _ in range(3)]
    assert given == [clock.now(), clock.now() + 1, clock.now() + 2]
    clock.advance(2 * AHEAD // SECOND)
    given.append(generations.next())
    assert given[-1] == clock.now()
    clock._now -= 3600 * SECOND
    given.append(generations.next())
    ledger.close()
    for _ in range(2):  # and after restarts, with the clock still wrong
        ledger = Ledger(path, clock)
        generations = Generations(clock, ledger)
        given += [generations.next(), generations.next()]
        ledger.close()
    assert given == sorted(set(given))


def test_generations_are_not_written_down_one_by_one(tmp_path: Path) -> None:
    clock = VirtualClock()
    ledger = Ledger(tmp_path / "ledger.db", clock)
    writes = []
    ledger._connection.set_trace_callback(lambda text: writes.append(text))
    generations = Generations(clock, ledger)
    for _ in range(1000):
        generations.next()
        clock.advance(0.01)
    assert sum("INSERT" in text for text in writes) == 1
    ledger.close()
