"""A whole fake cloud on real ports for a test session, and OpenStack's own clients to it, unmodified."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import uvloop

from kilonova.app import EmbeddedCloud
from kilonova.testing.embedded import settings_for
from kilonova.testing.ports import free_offset

T = TypeVar("T")

ADMIN, MEMBER = "kilonova-admin", "kilonova"
PATIENCE = 120  # seconds for anything, on a busy machine


class Served:
    """The cloud, in a thread and a loop of its own: ``run`` does something there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "state"
        self.cloud: EmbeddedCloud
        self.loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self._ready = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="served-cloud")
        self._client: Client | None = None

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits for us
            self._problem = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self.loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        calm: dict[str, object] = {
            "report_interval": 3600,
            "service_down_time": 7200,
        }  # nothing happens to hosts by itself
        settings = msgspec.structs.replace(settings_for(self.state, DEFAULT=calm), port_offset=free_offset())
        self.cloud = await EmbeddedCloud.assemble(settings)
        try:
            await self.cloud.start()
            await self.cloud.serve()
            self._ready.set()
            await self._over.wait()
        finally:
            await self.cloud.stop()

    @contextlib.contextmanager
    def serving(self) -> Iterator[Served]:
        self._thread.start()
        try:
            assert self._ready.wait(PATIENCE), "the cloud did not come up"
            if self._problem is not None:
                raise self._problem
            yield self
        finally:
            if self._client is not None:
                self._client.close()
            if self._thread.is_alive():
                self.loop.call_soon_threadsafe(self._over.set)
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine that runs in the cloud's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE)

    @property
    def url(self) -> str:
        """Of the Compute API's endpoint."""
        return f"{self.cloud.settings.url('compute')}/v2.1"

    def openstack(self, *words: str, cloud: str = ADMIN, fails: bool = False, **environment: str) -> Any:
        """Run ``openstack`` as that cloud of clouds.yaml: its JSON, or its text when it gives none.

        With ``fails`` it must end with an error, and what it then says is the result.
        """
        if self._client is None:
            self._client = Client(self.directory)
        given = {"OS_CLIENT_CONFIG_FILE": str(self.state / "clouds.yaml"), "OS_CLOUD": cloud, **environment}
        code, out, err = self._client(list(words), given)
        assert (code != 0) == fails, (words, code, out, err)
        if fails:
            return err
        return json.loads(out) if out[:1] in ("{", "[") else out

    @contextlib.contextmanager
    def sdk(self, cloud: str = ADMIN, **options: Any) -> Iterator[Any]:
        """A connection of openstacksdk."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of its own use of itself
            from openstack import connection
            from openstack.config import loader

            config = loader.OpenStackConfig(
                config_files=[str(self.state / "clouds.yaml")], load_envvars=False, app_name="test"
            )
            made = connection.Connection(config=config.get_one(cloud=cloud, **options))
            try:
                yield made
            finally:
                made.close()


class Client:
    """The ``openstack`` command, started once: what it imports takes longer than what it does."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("openstack_command.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
        )

    def __call__(self, words: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        assert self._process.stdin is not None and self._process.stdout is not None
        fixed = {"HOME": str(self._directory), "PATH": os.environ["PATH"], "COLUMNS": "400"}
        request = {"words": words, "environment": {**fixed, **environment}}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], answer["out"], answer["err"]

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One fake cloud for all tests of a session that use clients: each makes its own things in it."""
    with Served(tmp_path_factory.mktemp("served")).serving() as cloud:
        yield cloud
