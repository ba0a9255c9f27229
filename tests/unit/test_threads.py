"""Threads for what blocks."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from kilonova.threads import Threads


async def test_results_and_errors_come_back() -> None:
    threads = Threads("test", 2)
    assert await threads.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert await threads.run(lambda: threading.current_thread().name) in ("test-0", "test-1")
    threads.close()


async def test_no_more_threads_than_were_asked_for() -> None:
    threads = Threads("test", 3)
    names = {await threads.run(lambda: threading.current_thread().name) for _ in range(10)}
    assert names <= {"test-0", "test-1", "test-2"}
    alive = [thread for thread in threading.enumerate() if thread.name in names]
    threads.close()
    for thread in alive:
        thread.join(30)
        assert not thread.is_alive()


def test_a_call_that_hangs_does_not_hold_up_the_end_of_the_process() -> None:
    program = (
        "import threading\n"
        "from kilonova.threads import Threads\n"
        "Threads('t', 1).submit(threading.Event().wait)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_fake_cloud_loads_no_libvirt() -> None:
    program = (
        "import sys\n"
        "import kilonova.virt.libvirt.driver, kilonova.virt.libvirt.options\n"
        "assert 'libvirt' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
