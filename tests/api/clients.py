"""OpenStack's own clients, unmodified, against services of this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

T = TypeVar("T")

_SHELL = """
import contextlib, io, json, sys
from openstackclient.shell import OpenStackShell
from osc_lib.clientmanager import ClientManager
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    for found in vars(ClientManager).values():  # what plugins keep for one user at one version
        if hasattr(found, "_handle"):
            found._handle = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = OpenStackShell().run(json.loads(line))
        except SystemExit as exit:
            code = exit.code
    print(json.dumps([code, out.getvalue().strip(), err.getvalue().strip()]), file=sys.__stdout__, flush=True)
"""


class Shell:
    """A process that runs ``openstack`` commands: to start it costs more than a dozen commands."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def run(self, argv: list[str]) -> tuple[int, str, str]:
        """Exit code, output, errors of one command."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(argv).encode() + b"\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(120):
            line = await self._process.stdout.readline()
        assert line, "the shell has died"
        code, out, err = json.loads(line)
        return code, out, err


@contextlib.asynccontextmanager
async def shell() -> AsyncIterator[Shell]:
    with tempfile.TemporaryDirectory() as home:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-c", _SHELL),
            env={"HOME": home, "PATH": os.environ["PATH"]},
            cwd=home,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        try:
            yield Shell(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            async with asyncio.timeout(60):
                await process.wait()


class Clients:
    """The ``openstack`` command and openstacksdk as one user of a cloud.

    ``auth`` are the parameters of keystoneauth, of which None takes one away.
    """

    def __init__(self, shell: Shell, auth_url: str, **auth: str | None) -> None:
        self._shell = shell
        named = {
            "auth_url": auth_url,
            "user_domain_name": "Default",
            "project_domain_name": "Default",
            **auth,
        }
        self.auth = {name: value for name, value in named.items() if value is not None}

    async def run(self, command: str) -> tuple[int, str, str]:
        """Exit code, output, errors of an ``openstack`` command."""
        options = [f"--os-{name.replace('_', '-')}={value}" for name, value in self.auth.items()]
        return await self._shell.run([*options, *shlex.split(command)])

    async def openstack(self, *commands: str) -> list[Any]:
        """The output of each command, all of which succeed; decoded if it is JSON."""
        found = []
        for command in commands:
            code, out, err = await self.run(command)
            assert code == 0, (command, code, out, err)
            found.append(json.loads(out) if out[:1] in ("{", "[") else out)
        return found

    async def refused(self, command: str, *words: str) -> str:
        """What a command says that fails; the words are in it."""
        code, out, err = await self.run(command)
        assert code == 1 and all(word in err for word in words), (command, code, out, err)
        return err

    async def sdk(self, use: Callable[[Any], T]) -> T:
        """Call openstacksdk in a thread."""

        def run() -> T:
            import openstack

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the SDK says of itself
                connection = openstack.connect(
                    load_yaml_config=False, load_envvars=False, region_name="RegionOne", **self.auth
                )
                try:
                    return use(connection)
                finally:
                    connection.close()

        return await asyncio.to_thread(run)
