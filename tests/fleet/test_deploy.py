"""docs/deploy.md as it stands: its commands and files, with other addresses, make a cloud on this machine."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import click
import pytest

from kilonova.cli.agent import Replaced
from kilonova.cli.main import main
from kilonova.db.schema import REVISION
from kilonova.settings import GROUPS, PORTS, read_options
from kilonova.testing.bus import when
from kilonova.testing.fleet.fleet import APART
from kilonova.testing.ports import free_offset, free_port
from tests.conftest import opened

ROOT = Path(__file__).resolve().parents[2]
DEPLOY, TEXT = ROOT / "deploy", (ROOT / "docs/deploy.md").read_text()
BIN = Path(sys.executable).parent
BLOCKS = [block.replace("\\\n", " ") for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)]


def commands(beginning: str) -> list[str]:
    """The commands of the page that begin so, without their comments."""
    found = (re.sub(r"\s+#.*", "", line) for block in BLOCKS for line in block.splitlines())
    return [line.strip() for line in found if line.strip().startswith(beginning)]


# ---- what can be seen without running it ----


def resolved(words: list[str]) -> None:
    """Raises click.UsageError for a command that there is not, or that has no such option."""
    command: click.Command = main
    context = click.Context(main, resilient_parsing=True)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
    command.parse_args(click.Context(command, resilient_parsing=True), words)


def test_every_command_of_ours_is_one() -> None:
    ours = [*commands("kilonova "), *commands("runuser -u kilonova -- kilonova ")]
    assert len(ours) > 8
    for line in ours:
        resolved(shlex.split(line.rpartition("-- kilonova ")[2].removeprefix("kilonova ")))
    for word in re.findall(r"`kilonova ([a-z]+ ?[a-z]*)", TEXT):
        resolved([*word.split(), *(["x"] if word.split()[-1] in ("add", "remove") else [])])


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.service")), ids=lambda path: path.name)
def test_the_units_start_commands_that_there_are(path: Path) -> None:
    start = re.search(r"^ExecStart=(.*?[^\\])$", path.read_text(), re.MULTILINE | re.DOTALL)
    assert start is not None
    words = shlex.split(start[1].replace("\\\n", " "))
    assert words[0] == "/opt/kilonova/.venv/bin/kilonova"
    resolved(words[1:])
    if path.name == "kilonova-agent.service":
        assert f"\nRestartPreventExitStatus={Replaced.exit_code}\n" in path.read_text()
    if shutil.which("systemd-analyze"):
        done = subprocess.run(
            ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
        )
        said = [line for line in done.stderr.splitlines() if path.name in line]
        assert [line for line in said if "is not executable" not in line] == []


def test_every_option_of_the_configuration_is_one() -> None:
    group, count = "DEFAULT", 0
    for line in (DEPLOY / "controller.conf").read_text().splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            group = found[1]
        elif found := re.match(r"(\w+) =", line):
            options = GROUPS[None if group == "DEFAULT" else group]
            assert found[1] in [option.dest for option in options], line
            count += 1
    assert count >= 10
    assert read_options(DEPLOY / "controller.conf")["catalog"]["scheme"] == "https"
    for part, name in re.findall(r"`?\[(\w+)\]`?(\w+)", TEXT):
        known = [option.dest for option in GROUPS[None if part == "DEFAULT" else part]]
        assert name in known, f"[{part}]{name}"


def test_the_page_names_files_that_there_are_and_ports_that_are_ours() -> None:
    for name in re.findall(r"deploy/[\w.-]+", TEXT):
        assert (ROOT / name).exists(), name
    for port in PORTS.values():
        assert f":{port} ssl" in (DEPLOY / "haproxy.cfg").read_text()
        assert str(port) in TEXT
    for target in ("fleet", "host", "client"):
        assert f"make {target}" in TEXT and f"\n{target}:" in (ROOT / "Makefile").read_text()


# ---- and running it ----


class Machines:
    """cloud0, cloud1 and cloud2, all on the loopback interface."""

    def __init__(self, directory: Path, conninfo: str) -> None:
        self.directory, self.etc = directory, directory / "etc"
        self.nats = free_port()
        # That of what clients see; the controllers' come after it.
        self.offset = free_offset(APART * number for number in range(3))
        self.conninfo = conninfo
        self.processes: list[subprocess.Popen[bytes]] = []
        (self.etc / "kilonova").mkdir(parents=True)

    def placed(self, text: str) -> str:
        """Text of the page or of deploy/, for here."""
        for old, new in (
            ("/etc/", f"{self.etc}/"),
            ("/srv/kilonova", f"{self.directory}/srv"),
            ("/var/lib/kilonova", f"{self.directory}/var"),
            ("/root/", f"{self.directory}/root/"),
            ("tls://192.0.2.10:4222", f"tls://127.0.0.1:{self.nats}"),
            ("port: 4222", f'listen: "127.0.0.1:{self.nats}"'),
            ("192.0.2.10", "127.0.0.1"),
        ):
            text = text.replace(old, new)
        text = re.sub(r"postgresql://\S+", self.conninfo, text)
        text = re.sub(r"https://127\.0\.0\.1:8774", f"https://127.0.0.1:{8774 + self.offset}", text)
        text = text.replace("scheme = https", f"scheme = https\nport_offset = {self.offset}")
        text = re.sub(r"bind :(\d+)", lambda found: f"bind 127.0.0.1:{int(found[1]) + self.offset}", text)
        return re.sub(
            r"192\.0\.2\.1([12]):(\d+)",
            lambda found: f"127.0.0.1:{int(found[2]) + self.offset + APART * int(found[1])}",
            text,
        )

    def install(self, name: str, to: str, more: str = "") -> Path:
        """A file of deploy/."""
        path = self.etc / to
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.placed((DEPLOY / name).read_text()) + more)
        return path

    def run(self, command: str, **environment: str) -> str:
        """A command of the page."""
        done = subprocess.run(
            ["bash", "-ec", self.placed(command)],
            cwd=self.directory / "root",
            capture_output=True,
            text=True,
            timeout=120,
            env={"PATH": f"{BIN}:/usr/sbin:{os.environ['PATH']}", "HOME": str(self.directory), **environment},
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def openstack(self, words: str, cloud: str = "kilonova-admin") -> str:
        return self.run(
            f"openstack {words}",
            OS_CLIENT_CONFIG_FILE=f"{self.directory}/var/controller/clouds.yaml",
            OS_CLOUD=cloud,
            OS_CACERT=str(self.etc / "kilonova/ca.pem"),
        )

    async def start(self, name: str, *command: str, ready: str = "") -> subprocess.Popen[bytes]:
        log = self.directory / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, cwd="/")
        self.processes.append(process)
        await when(lambda: ready in log.read_text() or process.poll() is not None, 90)
        assert process.poll() is None, log.read_text()
        return process

    async def answers(self, port: int) -> None:
        def there() -> bool:
            with socket.socket() as tried:
                return tried.connect_ex(("127.0.0.1", port)) == 0

        await when(there)

    def clear(self) -> None:
        for each in reversed(self.processes):
            if each.poll() is None:
                each.send_signal(signal.SIGTERM)
        for each in self.processes:
            try:
                each.wait(20)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait(20)


@pytest.fixture
def bare(tmp_path: Path, postgresql_server: str) -> Iterator[Machines]:
    host, user = (part.split("=")[1] for part in postgresql_server.split())
    made = Machines(tmp_path, f"postgresql://{user}@/deploy?host={host}")
    (tmp_path / "root").mkdir()
    (tmp_path / "srv").mkdir(mode=0o700)
    yield made
    made.clear()


@pytest.fixture
async def machines(request: pytest.FixtureRequest, bare: Machines, tmp_path: Path) -> AsyncIterator[Machines]:
    """Up to step 8."""
    for program in ("haproxy", "nats-server"):
        if shutil.which(program, path=f"/usr/sbin:{os.environ['PATH']}") is None:
            pytest.fail(f"{program} is not installed: run `make test`, which installs it.")
    async with opened(request, "postgresql", tmp_path, request.getfixturevalue("clock"), "deploy"):
        pass  # empty; the tables are made by the page's command once more
    users = f"\n[nats]\nusers_file = {bare.etc}/kilonova/nats-users.conf\n"  # the default, from here
    (certificates,) = [block for block in BLOCKS if "openssl" in block]
    bare.run(
        "\n".join(line for line in certificates.splitlines() if not line.startswith(("cd ", "install ")))
    )
    bare.install(
        "controller.conf", "kilonova/controller.conf", f"{users}[identity]\npassword_hash_rounds = 1\n"
    )
    bare.install("nats-server.conf", "nats-server.conf")
    for name in ("ca.pem", "server.pem", "server.key"):
        shutil.copy(tmp_path / "root" / name, bare.etc / "kilonova" / name.replace("server", "nats-server"))
    for line in commands("kilonova host add --controller") + commands("kilonova host add compute"):
        bare.run(line)
    bare.run(*commands("nats-server -t"))
    await bare.start("nats", "/usr/sbin/nats-server", "-c", str(bare.etc / "nats-server.conf"))
    await bare.answers(bare.nats)
    shutil.copy(tmp_path / "root/cloud1/controller.nk", bare.etc / "kilonova")
    (upgrade,) = commands("runuser -u kilonova -- kilonova db upgrade")
    assert "schema:" in bare.run(upgrade.split("-- ")[1])
    assert REVISION in bare.run(*commands("kilonova db version"))
    bare.install("haproxy.cfg", "haproxy/haproxy.cfg")
    for line in commands("cat /root/server.pem"):
        bare.run(line)
    bare.run(*commands("haproxy -c"))
    await bare.start("haproxy", "/usr/sbin/haproxy", "-db", "-f", str(bare.etc / "haproxy/haproxy.cfg"))
    yield bare


async def controller(machines: Machines, number: int) -> subprocess.Popen[bytes]:
    state = machines.directory / "var" / ("controller" if number == 1 else f"controller{number}")
    command = [str(BIN / "kilonova"), "controller", "--state-dir", str(state), "--listen", "127.0.0.1"]
    command += ["--config-file", str(machines.etc / "kilonova/controller.conf")]
    offset = str(machines.offset + APART * number)
    return await machines.start(f"cloud{number}", *command, "--port-offset", offset, ready="ready: https://")


async def agent(machines: Machines, host: str) -> subprocess.Popen[bytes]:
    """With the files that `host add` made for it, where they are to be put."""
    theirs = machines.directory / f"etc-{host}"
    shutil.copytree(machines.directory / "root" / host, theirs)
    conf = theirs / "kilonova.conf"
    conf.write_text(conf.read_text().replace("/etc/kilonova", str(theirs)))
    command = [str(BIN / "kilonova"), "agent", "--driver", "fake", "--config-file", str(conf)]
    command += ["--state-dir", str(machines.directory / f"var/{host}")]
    return await machines.start(host, *command, ready=f"ready: host {host}")


@pytest.mark.slow
@pytest.mark.postgresql
async def test_the_page_makes_a_cloud(machines: Machines) -> None:
    first, _ = await asyncio.gather(controller(machines, 1), controller(machines, 2))
    await asyncio.gather(agent(machines, "compute1"), agent(machines, "compute2"))

    services = machines.openstack("compute service list --service nova-compute -f value -c Host -c State")
    assert sorted(services.splitlines()) == ["compute1 up", "compute2 up"]
    (machines.directory / "root/image.qcow2").write_bytes(bytes(1 << 20))
    (create,) = commands("openstack image create")
    machines.openstack(create.removeprefix("openstack ").replace("qcow2 --container", "raw --container"))
    (boot,) = [line for line in commands("OS_CLOUD=kilonova openstack server create")]
    boot = boot.removeprefix("OS_CLOUD=kilonova openstack ")
    assert "ACTIVE" in machines.openstack(boot, "kilonova")

    first.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(first.wait, 20) == 0
    again = boot.replace("--wait first", "--wait second")
    assert "ACTIVE" in machines.openstack(again, "kilonova")

    (removal,) = commands("kilonova host remove")
    machines.run(removal.replace("compute3", "compute2"))
    machines.processes[0].send_signal(signal.SIGHUP)  # systemctl reload nats-server
    log = machines.directory / "var/compute2/kilonova.log"
    await when(lambda: "does not know our key" in log.read_text())
    for name in machines.directory.glob("var/*/kilonova.log"):  # no secret went anywhere
        text = name.read_text()
        for seed in machines.directory.glob("root/*/*.nk"):
            assert seed.read_text().strip() not in text
