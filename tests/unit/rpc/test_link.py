"""A connection that comes back by itself, on a nats-server that is killed, stopped, cut off and disguised."""

from __future__ import annotations

import datetime
import ipaddress
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from structlog.testing import capture_logs

from kilonova.errors import Failed, Unreachable
from kilonova.rpc import credentials, subjects
from kilonova.rpc.nats_link import BusOptions, Link
from kilonova.testing.bus import NatsServer, Wire, when, when_so
from kilonova.testing.clock import FastClock
from tests.unit.rpc.conftest import LinkTo


class Heard:
    """What comes to a subject."""

    def __init__(self) -> None:
        self.data: list[bytes] = []

    def __call__(self, subject: str, data: bytes, reply: str) -> None:
        if data == b"bad":
            raise ValueError("bad")
        self.data.append(data)


async def told(link: Link, data: bytes, heard: Heard) -> None:
    """Say it until it is heard: until a subscription is at the server, nobody is there."""
    before = len(heard.data)

    async def again() -> bool:
        await link.publish("kn.news", data)
        return len(heard.data) > before

    await when_so(again)


# ---- a server that goes and comes ----


async def test_a_killed_server_is_found_again_with_all_subscriptions(
    own_bus: NatsServer, link_to: LinkTo
) -> None:
    own_bus.start()
    link, heard, changes = await link_to(own_bus.url), Heard(), list[str]()
    link.on_lost.append(lambda: changes.append("lost"))
    link.on_back.append(lambda: changes.append("back"))
    await link.subscribe("kn.news", heard)
    await told(link, b"1", heard)
    own_bus.kill()
    await when(lambda: not link.connected)
    with pytest.raises(Unreachable, match="no connection to NATS at the moment"):
        await link.publish("kn.news", b"lost")
    await link.subscribe("kn.more", heard)  # while nobody is there
    own_bus.start()
    await link.wait(20)
    await told(link, b"2", heard)
    await link.publish("kn.more", b"3")
    await when(lambda: b"3" in heard.data)
    assert changes == ["lost", "back"]


async def test_a_stopped_server_is_taken_for_lost_and_found_again(
    own_bus: NatsServer, link_to: LinkTo
) -> None:
    own_bus.start()
    link, heard = await link_to(own_bus.url, silence=0.5), Heard()
    await link.subscribe("kn.news", heard)
    own_bus.send(signal.SIGSTOP)
    await when(lambda: not link.connected)
    own_bus.send(signal.SIGCONT)
    await link.wait(20)
    await told(link, b"2", heard)


async def test_it_waits_for_a_server_that_comes_later(own_bus: NatsServer, link_to: LinkTo) -> None:
    link = await link_to(own_bus.url, wait=False)
    with pytest.raises(
        Unreachable, match=rf"No connection to NATS at {own_bus.url}: .*(Connect call failed|refused)"
    ):
        await link.wait(0.3)
    own_bus.start()
    await link.wait(20)


@pytest.mark.parametrize("direction", ["swallow_answers", "swallow_questions"])
async def test_a_wire_that_loses_one_direction_is_left(
    shared_bus: NatsServer, link_to: LinkTo, direction: str
) -> None:
    wire, heard = Wire(shared_bus.port), Heard()
    await wire.open()
    try:
        link = await link_to(wire.url, silence=0.5)
        await link.subscribe("kn.news", heard)
        await told(link, b"1", heard)
        setattr(wire, direction, True)
        await when(lambda: not link.connected)
        setattr(wire, direction, False)
        await link.wait(20)
        await told(link, b"2", heard)
        assert wire.connections >= 2
        await link.close()
    finally:
        await wire.close()


async def test_renew_takes_a_new_connection(shared_bus: NatsServer, link_to: LinkTo) -> None:
    wire, heard = Wire(shared_bus.port), Heard()
    await wire.open()
    try:
        link = await link_to(wire.url)
        await link.subscribe("kn.news", heard)
        link.renew()
        await when(lambda: wire.connections == 2 and link.connected)
        await told(link, b"1", heard)
        await link.close()
    finally:
        await wire.close()


async def test_who_unsubscribes_hears_no_more_also_on_the_next_connection(
    shared_bus: NatsServer, link_to: LinkTo
) -> None:
    link, ended, heard = await link_to(shared_bus.url), Heard(), Heard()
    end = await link.subscribe("kn.news", ended)
    await link.subscribe("kn.news", heard)
    await told(link, b"1", heard)
    end()
    await told(link, b"2", heard)
    back: list[bool] = []
    link.on_back.append(lambda: back.append(True))
    link.renew()
    await when(lambda: back)
    await told(link, b"3", heard)
    assert b"3" not in ended.data


async def test_one_of_a_queue_hears(shared_bus: NatsServer, link_to: LinkTo) -> None:
    link, other = await link_to(shared_bus.url), await link_to(shared_bus.url)
    one, two, all_ = Heard(), Heard(), Heard()
    await link.subscribe("kn.news", one, "q")
    await other.subscribe("kn.news", two, "q")
    await other.subscribe("kn.news", all_)
    await told(link, b"x", all_)
    before = len(one.data) + len(two.data) - len(all_.data)
    for _ in range(20):
        await link.publish("kn.news", b"y")
    await when(lambda: all_.data.count(b"y") == 20)
    await when(lambda: len(one.data) + len(two.data) == len(all_.data) + before)


async def test_a_handler_that_fails_hears_the_next_message(shared_bus: NatsServer, link_to: LinkTo) -> None:
    link, heard = await link_to(shared_bus.url), Heard()
    await link.subscribe("kn.news", heard)
    await told(link, b"1", heard)
    with capture_logs() as logs:
        await link.publish("kn.news", b"bad")
        await told(link, b"2", heard)
    assert "a message was not taken" in [each["event"] for each in logs]


# ---- who we are ----


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.nk"
    path.write_text(credentials.new_key().seed + "\n")
    path.chmod(0o600)
    return path


async def test_an_unknown_key_is_told_and_let_in_when_it_is_known(
    own_bus: NatsServer, link_to: LinkTo, key_file: Path
) -> None:
    other = credentials.new_key().public
    own_bus.configure(f"authorization {{ users = [{{nkey: {other}}}] }}")
    own_bus.start()
    link = await link_to(own_bus.url, wait=False, seed_file=key_file)
    await when(lambda: "does not know our key" in link._why)
    with pytest.raises(Unreachable, match="does not know our key"):
        await link.wait(0.1)
    mine = credentials.public_of(key_file.read_text())
    own_bus.configure(f"authorization {{ users = [{{nkey: {mine}}}] }}")
    own_bus.reload()
    await link.wait(20)


@pytest.mark.parametrize(
    "text",
    ["", "secret", "UAABC", credentials.new_key().public, credentials.new_key().seed[:-1] + "é"],
    ids=["empty", "word", "cut", "public", "letter"],  # the same in every worker
)
async def test_a_key_file_without_a_key_is_refused_at_once(
    tmp_path: Path, fast: FastClock, text: str
) -> None:
    path = tmp_path / "seed"
    path.write_text(text)
    path.chmod(0o600)
    link = Link(BusOptions(servers=("nats://127.0.0.1:1",), seed_file=path), fast, "x", "kn.inbox.x")
    with pytest.raises(Failed, match=r"\[nats\]nkey_seed_file .*seed") as caught:
        link.open()
    assert "SU" + text[2:6] not in str(caught.value) or not text.startswith("SU")
    path.unlink()
    with pytest.raises(Failed, match="No such file"):
        link.open()


async def test_a_key_that_others_can_read_is_refused(key_file: Path, fast: FastClock) -> None:
    key_file.chmod(0o640)
    link = Link(BusOptions(servers=("nats://127.0.0.1:1",), seed_file=key_file), fast, "x", "kn.inbox.x")
    with pytest.raises(Failed, match="can be read by others: chmod 600"):
        link.open()


def test_passwords_in_urls_are_not_shown() -> None:
    options = BusOptions(servers=("nats://me:secret@10.0.0.1:4222", "tls://b:4222"))
    assert options.shown == "nats://10.0.0.1:4222, tls://b:4222"


# ---- TLS ----


class Authority:
    """Signs certificates for 127.0.0.1."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory, self.name = directory, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._signed(self._key, name, authority=True)
        self.file = directory / f"{name}.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _signed(
        self,
        key: ec.EllipticCurvePrivateKey,
        name: str,
        *,
        authority: bool = False,
        address: str = "127.0.0.1",
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = subject if authority else self._certificate.subject
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
            )
        )
        return builder.sign(self._key, hashes.SHA256())

    def issue(self, name: str, address: str = "127.0.0.1") -> tuple[Path, Path]:
        """A certificate and its key, as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, secret = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        signed = self._signed(key, name, address=address)
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, secret


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def tls(authority: Authority, address: str = "127.0.0.1", more: str = "") -> str:
    certificate, key = authority.issue("server", address)
    return f'tls {{ cert_file: "{certificate}", key_file: "{key}" {more} }}'


async def refused(link: Link) -> str:
    """Why there is no connection."""
    await when(lambda: link._why != "nobody answers")
    with pytest.raises(Unreachable) as caught:
        await link.wait(0.05)
    return str(caught.value)


async def test_a_server_of_our_authority_is_spoken_to(
    own_bus: NatsServer, link_to: LinkTo, authority: Authority
) -> None:
    own_bus.configure(tls(authority))
    own_bus.start()
    link, heard = await link_to(own_bus.url, ca_file=authority.file), Heard()
    await link.subscribe("kn.news", heard)
    await told(link, b"1", heard)


async def test_a_server_of_another_authority_is_not(
    own_bus: NatsServer, link_to: LinkTo, authority: Authority, tmp_path: Path
) -> None:
    own_bus.configure(tls(authority))
    own_bus.start()
    other = Authority(tmp_path, "theirs")
    link = await link_to(own_bus.url, wait=False, ca_file=other.file)
    assert "its certificate is not that of [nats]ca_file" in await refused(link)


async def test_a_server_with_the_certificate_of_another_machine_is_not(
    own_bus: NatsServer, link_to: LinkTo, authority: Authority
) -> None:
    own_bus.configure(tls(authority, address="192.0.2.1"))
    own_bus.start()
    link = await link_to(own_bus.url, wait=False, ca_file=authority.file)
    assert "or of another machine" in await refused(link)


async def test_a_server_without_tls_is_not_spoken_to_when_it_should_have_it(
    own_bus: NatsServer, link_to: LinkTo, authority: Authority
) -> None:
    own_bus.start()
    link = await link_to(own_bus.url, wait=False, ca_file=authority.file)
    assert "speaks without TLS" in await refused(link)


async def test_an_address_can_ask_for_tls_too(
    own_bus: NatsServer, link_to: LinkTo, authority: Authority
) -> None:
    own_bus.start()
    link = await link_to(own_bus.url.replace("nats:", "tls:"), wait=False)
    assert "speaks without TLS" in await refused(link)
    await link.close()
    own_bus.kill()
    own_bus.configure(tls(authority))
    own_bus.start()
    link = await link_to(own_bus.url.replace("nats:", "tls:"), wait=False)
    assert "its certificate is not" in await refused(link)  # by the authorities that this machine trusts
    assert await link_to(own_bus.url.replace("nats:", "tls:"), ca_file=authority.file)


async def test_a_server_may_want_our_certificate(
    own_bus: NatsServer, link_to: LinkTo, authority: Authority
) -> None:
    own_bus.configure(tls(authority, more=f', ca_file: "{authority.file}", verify: true'))
    own_bus.start()
    without = await link_to(own_bus.url, wait=False, ca_file=authority.file)
    await refused(without)
    certificate, key = authority.issue("agent")
    link, heard = (
        await link_to(own_bus.url, ca_file=authority.file, cert_file=certificate, key_file=key),
        Heard(),
    )
    await link.subscribe("kn.news", heard)
    await told(link, b"1", heard)


def test_files_that_are_no_certificates_are_refused_at_once(fast: FastClock, tmp_path: Path) -> None:
    broken = tmp_path / "ca.pem"
    broken.write_text("no certificate")
    for path in (broken, tmp_path / "absent.pem"):
        link = Link(BusOptions(servers=("nats://127.0.0.1:1",), ca_file=path), fast, "x", "kn.inbox.x")
        with pytest.raises(Failed, match=r"\[nats\] TLS files cannot be used"):
            link.open()


@pytest.fixture
async def lonely(fast: FastClock) -> AsyncIterator[Link]:
    link = Link(BusOptions(servers=("nats://127.0.0.1:1",)), fast, "x", subjects.inbox("kn", "x"))
    link.open()
    yield link
    await link.close()


async def test_it_can_be_closed_while_it_tries(lonely: Link) -> None:
    await lonely.close()
    assert not lonely.connected
