"""Running the system's programs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kilonova.errors import HostFault
from kilonova.programs import ProgramFailed, run


async def test_a_program_gives_what_it_wrote_and_gets_its_words_unchanged(tmp_path: Path) -> None:
    words = ["$HOME", "a b", "; false", "*", "`id`"]
    assert await run("printf", "%s|", *words) == "".join(f"{word}|" for word in words)
    assert await run("cat", stdin="told\n") == "told\n"
    assert await run("sh", "-c", "echo $SPECIAL", environment={"SPECIAL": "x"}) == "x\n"
    assert await run("pwd", cwd=tmp_path) == f"{tmp_path}\n"


async def test_a_program_need_not_read_what_it_is_told() -> None:
    for _ in range(20):
        assert await run("true", stdin="x" * 1_000_000) == ""


async def test_programs_that_fail_say_what_was_run_and_why(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match=r"'sh -c .*' failed with code 3: no luck") as caught:
        await run("sh", "-c", "echo no luck >&2; exit 3")
    assert (caught.value.code, caught.value.stderr) == (3, "no luck\n")
    with pytest.raises(HostFault, match="'no-such-program' is not installed"):
        await run("no-such-program")
    plain = tmp_path / "plain"
    plain.write_text("x")
    with pytest.raises(HostFault, match="cannot be run: Permission denied"):
        await run(str(plain))


async def test_limits_hold() -> None:
    with pytest.raises(ProgramFailed):
        await run("python3", "-c", "bytes(2 << 30)", limited=True)
    assert await run("sh", "-c", "ulimit -t", limited=True) == "30\n"


async def test_a_program_that_does_not_end_is_killed(tmp_path: Path) -> None:
    script = f"echo $$ >{tmp_path}/pid; exec sleep 1000"
    with pytest.raises(HostFault, match=r"did not end within 2 seconds"):
        await run("sh", "-c", script, timeout=2)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


async def test_a_cancelled_caller_leaves_no_program(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    task = asyncio.create_task(run("sh", "-c", f"echo $$ >{pid_file}; exec sleep 1000"))
    async with asyncio.timeout(30):
        while not pid_file.exists() or not pid_file.read_text().strip():
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()
