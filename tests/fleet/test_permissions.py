"""What nats-server lets agents and controllers say and hear: the users are made as an operator makes them."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from click.testing import CliRunner, Result
from nats.aio.client import Client
from nats.aio.msg import Msg

from kilonova.cli.main import main
from kilonova.settings import read_options
from kilonova.testing.bus import NatsServer, settled, when


class Deployment:
    """A nats-server, and the directory from which an operator works."""

    def __init__(self, bus: NatsServer, directory: Path) -> None:
        self.bus, self.directory = bus, directory
        self.users = directory / "users.conf"
        self.conf = directory / "controller.conf"
        self.conf.write_text(f"[nats]\nservers = {bus.url}\nsubject_prefix = kn\nusers_file = {self.users}\n")
        bus.configure("authorization { include ../users.conf }")  # paths begin where nats.conf is
        self.clients: list[Client] = []
        self.errors: dict[str, list[str]] = {}

    def host(self, *arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(main, ["host", *arguments, "--config-file", str(self.conf)])
        assert done.exit_code == status, done.output
        return done

    def add(self, name: str, *more: str) -> Path:
        """Its directory."""
        self.host("add", name, "--out", str(self.directory / name), *more)
        return self.directory / name

    async def connect(self, name: str, seed: Path | None = None) -> Client:
        """As an agent or controller; ``errors[name]`` has what the server says against it."""
        errors = self.errors.setdefault(name, [])

        async def heard(error: Exception) -> None:
            errors.append(str(error))

        (kept,) = [seed] if seed else (self.directory / name).glob("*.nk")
        return await self.connected(nkeys_seed=str(kept), error_cb=heard)

    async def connected(self, **more: Any) -> Client:
        client = Client()
        self.clients.append(client)
        await client.connect(self.bus.url, allow_reconnect=False, connect_timeout=5, **more)
        return client

    async def refused(self, name: str, what: str) -> None:
        """The server has refused something to it."""
        await when(lambda: any(what in each for each in self.errors[name]), 10)
        self.errors[name].clear()


@pytest.fixture
async def deployment(own_bus: NatsServer, tmp_path: Path) -> AsyncIterator[Deployment]:
    made = Deployment(own_bus, tmp_path)
    for name in ("a", "b"):
        made.add(name)
    made.add("ctl", "--controller")
    own_bus.start()
    yield made
    for each in made.clients:
        await each.close()


class Box:
    """What a client hears."""

    def __init__(self) -> None:
        self.messages: list[Msg] = []

    async def take(self, message: Msg) -> None:
        self.messages.append(message)

    @property
    def data(self) -> list[bytes]:
        return [each.data for each in self.messages]


async def listening(client: Client, subject: str, queue: str = "") -> Box:
    box = Box()
    await client.subscribe(subject, queue=queue, cb=box.take)
    await settled(client)
    return box


async def test_an_agent_asks_the_controllers_and_hears_their_answer(deployment: Deployment) -> None:
    agent, controller = await deployment.connect("a"), await deployment.connect("ctl")
    asked = await listening(controller, "kn.from.*.*", "controllers")
    answers = await listening(agent, "kn.inbox.a.s1.*")
    await agent.publish("kn.from.a.hello", b"hello", reply="kn.inbox.a.s1.1")
    await when(lambda: asked.messages)
    assert asked.messages[0].subject == "kn.from.a.hello"
    await controller.publish(asked.messages[0].reply, b"welcome")
    await when(lambda: answers.data == [b"welcome"])
    assert not deployment.errors["a"] and not deployment.errors["ctl"]


async def test_a_controller_asks_an_agent_which_answers_several_times(deployment: Deployment) -> None:
    agent, controller = await deployment.connect("a"), await deployment.connect("ctl")
    asked = await listening(agent, "kn.host.a.s1.*")
    answers = await listening(controller, "kn.inbox.controllers.c1.*")
    await controller.publish("kn.host.a.s1.start", b"start", reply="kn.inbox.controllers.c1.1")
    await when(lambda: asked.messages)
    for each in (b"working", b"working", b"done"):
        await agent.publish("kn.inbox.controllers.c1.1", each)
    await when(lambda: answers.data == [b"working", b"working", b"done"])
    await agent.publish("kn.inbox.controllers.c1.2", b"forged")  # which it was not asked for
    await deployment.refused("a", "permissions violation for publish")
    assert answers.data[3:] == []


async def test_so_many_answers_are_let_through_until_the_question_is_repeated(deployment: Deployment) -> None:
    text = deployment.users.read_text()
    assert '"max":150' in text
    deployment.users.write_text(text.replace('"max":150', '"max":2'))
    deployment.bus.reload()
    agent, controller = await deployment.connect("a"), await deployment.connect("ctl")
    asked = await listening(agent, "kn.host.a.s1.*")
    answers = await listening(controller, "kn.inbox.controllers.c1.*")
    for round_ in (1, 2):
        await controller.publish("kn.host.a.s1.start", b"start", reply="kn.inbox.controllers.c1.1")
        await when(lambda expected=round_: len(asked.messages) == expected)
        for each in (b"1", b"2", b"3"):
            await agent.publish("kn.inbox.controllers.c1.1", each)
        await deployment.refused("a", "permissions violation for publish")
        await when(lambda times=round_: answers.data == [b"1", b"2"] * times)


@pytest.mark.parametrize(
    "subject",
    [
        "kn.from.b.hello",  # as another host
        "kn.from.a",
        "kn.from.a.hello.more",
        "kn.host.b.s1.destroy",  # a command to another host
        "kn.host.a.s1.destroy",
        "kn.inbox.b.s1.1",  # an answer to another host
        "kn.inbox.controllers.c1.1",
        "elsewhere",
        "$SYS.REQ.SERVER.PING",
    ],
)
async def test_an_agent_cannot_say_what_is_not_its_own(deployment: Deployment, subject: str) -> None:
    agent, controller, other = [await deployment.connect(each) for each in ("a", "ctl", "b")]
    boxes = [
        await listening(controller, "kn.from.*.*", "controllers"),
        await listening(controller, "kn.inbox.controllers.>"),
        await listening(other, "kn.host.b.>"),
        await listening(other, "kn.inbox.b.>"),
    ]
    await agent.publish(subject, b"forged")
    await deployment.refused("a", "permissions violation for publish")
    await agent.publish("kn.from.a.alive", b"mine")
    await when(lambda: boxes[0].data == [b"mine"])
    assert [each.data for each in boxes[1:]] == [[], [], []]


@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "kn.>",
        "kn.host.b.>",  # another's commands
        "kn.host.*.s1.start",
        "kn.inbox.b.>",  # another's answers
        "kn.inbox.*.>",
        "kn.inbox.controllers.>",
        "kn.from.*.*",  # what agents ask
        "kn.from.b.hello",
        "$SYS.>",
    ],
)
async def test_an_agent_cannot_hear_what_is_not_for_it(deployment: Deployment, subject: str) -> None:
    agent, controller, other = [await deployment.connect(each) for each in ("a", "ctl", "b")]
    box = await listening(agent, subject)
    await deployment.refused("a", "permissions violation for subscription")
    mine = await listening(agent, "kn.host.a.s1.*")
    for to in ("kn.host.b.s1.start", "kn.inbox.b.s1.1", "kn.host.a.s1.start"):
        await controller.publish(to, b"secret")
    await other.publish("kn.from.b.hello", b"secret")
    await when(lambda: mine.data == [b"secret"])
    await other.flush()
    await agent.flush()
    await asyncio.sleep(0.05)
    assert box.data == []


async def test_controllers_are_not_answered_by_one_another_and_listen_in_their_queue(
    deployment: Deployment,
) -> None:
    controller = await deployment.connect("ctl")
    await controller.publish("kn.inbox.controllers.c2.1", b"forged")
    await deployment.refused("ctl", "permissions violation for publish")
    await controller.publish("kn.from.a.hello", b"forged")
    await deployment.refused("ctl", "permissions violation for publish")
    for subject, queue in (
        ("kn.from.*.*", ""),
        ("kn.from.*.*", "mine"),
        ("kn.host.>", ""),
        ("kn.inbox.a.>", ""),
    ):
        await listening(controller, subject, queue)
        await deployment.refused("ctl", "permissions violation for subscription")


async def test_a_key_that_nobody_has_added_is_refused(deployment: Deployment, tmp_path: Path) -> None:
    from kilonova.rpc.credentials import new_key

    stranger = tmp_path / "stranger.nk"
    stranger.write_text(new_key().seed)
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await deployment.connect("stranger", stranger)
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await deployment.connected()


async def test_a_removed_host_is_cut_off_at_the_reload_and_the_others_are_not(deployment: Deployment) -> None:
    agent, other = await deployment.connect("a"), await deployment.connect("b")
    said = deployment.host("remove", "a").output
    assert "reload" in said
    await agent.publish("kn.from.a.alive", b"still here")
    await agent.flush()
    deployment.bus.reload()
    await when(lambda: agent.is_closed)
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await deployment.connect("a")
    await other.flush()
    assert other.is_connected
    assert "a" not in [each.split("\t")[1] for each in deployment.host("list").output.splitlines()]


async def test_an_added_host_is_let_in_at_the_reload(deployment: Deployment) -> None:
    deployment.add("c.example.org")
    with pytest.raises(nats.errors.Error, match="Authorization Violation"):
        await deployment.connect("c.example.org")
    deployment.bus.reload()
    agent, controller = await deployment.connect("c.example.org"), await deployment.connect("ctl")
    asked = await listening(controller, "kn.from.*.*", "controllers")
    await agent.publish("kn.from.c=2Eexample=2Eorg.alive", b"here")
    await when(lambda: asked.data == [b"here"])


async def test_a_replaced_key_shuts_out_the_old_one(deployment: Deployment) -> None:
    old = (deployment.directory / "a" / "agent.nk").read_text()
    agent = await deployment.connect("a")
    assert (
        "has a key since"
        in deployment.host("add", "a", "--out", str(deployment.directory / "x"), status=1).output
    )
    assert not (deployment.directory / "x").exists()
    deployment.add("a", "--replace")
    assert (deployment.directory / "a" / "agent.nk").read_text() != old
    deployment.bus.reload()
    await when(lambda: agent.is_closed)
    await deployment.connect("a")


# ---- what `host add` writes ----


@pytest.fixture
def written(deployment: Deployment) -> Iterator[Path]:
    yield deployment.directory / "a"


async def test_the_seed_is_private_and_nowhere_else(deployment: Deployment, written: Path) -> None:
    seed = written / "agent.nk"
    assert stat.S_IMODE(seed.stat().st_mode) == 0o600
    assert stat.S_IMODE(written.stat().st_mode) == 0o700
    text = seed.read_text().strip()
    for path in deployment.directory.rglob("*"):
        if path.is_file() and path != seed:
            assert text not in path.read_text()


async def test_the_agent_understands_its_configuration(deployment: Deployment, written: Path) -> None:
    options = read_options(written / "kilonova.conf")
    assert options["DEFAULT"]["host"] == "a"
    assert options["nats"]["servers"] == [deployment.bus.url]
    assert options["nats"]["subject_prefix"] == "kn"
    assert options["nats"]["nkey_seed_file"] == "/etc/kilonova/agent.nk"
    assert options["nats"]["ca_file"] is None


async def test_the_authority_goes_with_it(deployment: Deployment) -> None:
    authority = deployment.directory / "ca.pem"
    authority.write_text("certificate")
    with deployment.conf.open("a") as file:
        file.write(f"ca_file = {authority}\n")
    made = deployment.add("d", "--server", "tls://n1:4222", "--server", "tls://n2:4222")
    options = read_options(made / "kilonova.conf")["nats"]
    assert options["servers"] == ["tls://n1:4222", "tls://n2:4222"]
    assert options["ca_file"] == "/etc/kilonova/nats-ca.pem"
    assert (made / "nats-ca.pem").read_text() == "certificate"
    authority.unlink()
    said = deployment.host("add", "e", "--out", str(deployment.directory / "e"), status=1).output
    assert f"{authority} cannot be read" in said
    assert "\te\t" not in deployment.host("list").output


async def test_a_directory_with_a_key_is_left_alone(deployment: Deployment, written: Path) -> None:
    old = (written / "agent.nk").read_text()
    said = deployment.host("add", "z", "--out", str(written), status=1).output
    assert "is there already" in said
    assert (written / "agent.nk").read_text() == old
    assert "\tz\t" not in deployment.host("list").output


@pytest.mark.parametrize("name", ["controllers", "a b", "../x", ""])
async def test_bad_names_are_refused_and_leave_nothing(deployment: Deployment, name: str) -> None:
    before = deployment.users.read_text()
    said = deployment.host("add", name, "--out", str(deployment.directory / "bad"), status=1).output
    assert said.startswith("Error: ")
    assert deployment.users.read_text() == before and not (deployment.directory / "bad").exists()


async def test_the_list(deployment: Deployment) -> None:
    lines = [each.split("\t") for each in deployment.host("list").output.splitlines()]
    assert [each[:2] for each in lines] == [["agent", "a"], ["agent", "b"], ["controller", "ctl"]]
    keys = {each[2] for each in lines}
    in_file = {
        json.loads(line)["nkey"]
        for line in deployment.users.read_text().splitlines()
        if line.startswith("  {")
    }
    assert keys == in_file and len(keys) == 3


async def test_errors_are_lines(deployment: Deployment) -> None:
    assert "no agent 'x'" in deployment.host("remove", "x", status=1).output
    assert "no controller 'a'" in deployment.host("remove", "a", "--controller", status=1).output
    deployment.users.write_text("users = [{user: me}]\n")
    for command in (["list"], ["remove", "a"], ["add", "y", "--out", str(deployment.directory / "y")]):
        assert "was not written by" in deployment.host(*command, status=1).output
    deployment.conf.write_text("[nats]\nsubject_prefix = a b\n")
    assert "subject_prefix" in deployment.host("add", "y", status=1).output
