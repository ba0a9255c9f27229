"""``[nats]``: what can be, and what is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from kilonova.errors import Failed
from kilonova.rpc.nats_link import BusOptions
from kilonova.rpc.nats_options import bus_options
from kilonova.testing.embedded import settings_for


def options(**nats: object) -> BusOptions:
    return bus_options(settings_for(Path("/nonexistent"), nats=nats))


def test_what_is_given_is_taken() -> None:
    found = options(
        servers=["nats://a:4222", " tls://[::1]:4223"],
        subject_prefix="cell-1.kn",
        nkey_seed_file="/k",
        ca_file="/ca",
        cert_file="/c",
        key_file="/ck",
    )
    assert found == BusOptions(
        servers=("nats://a:4222", "tls://[::1]:4223"),
        prefix="cell-1.kn",
        seed_file=Path("/k"),
        ca_file=Path("/ca"),
        cert_file=Path("/c"),
        key_file=Path("/ck"),
    )
    assert options() == BusOptions(servers=("nats://127.0.0.1:4222",))


@pytest.mark.parametrize("prefix", ["", ".", "a.", ".a", "a..b", "a b", "a*", ">", "a.>", "x" * 65, "\u00e9"])
def test_prefixes_that_can_be_none(prefix: str) -> None:
    with pytest.raises(Failed, match=r"\[nats\]subject_prefix"):
        options(subject_prefix=prefix)


@pytest.mark.parametrize(
    "server", ["", "a:4222", "ws://a:80", "http://a", "nats://", "nats://a b", "nats://a/b"]
)
def test_servers_that_are_none(server: str) -> None:
    with pytest.raises(Failed, match=r"\[nats\]servers has"):
        options(servers=["nats://a:4222", server])


def test_no_server_at_all_and_no_password_in_the_reason() -> None:
    with pytest.raises(Failed, match=r"\[nats\]servers has"):
        options(servers=[])
    with pytest.raises(Failed) as caught:
        options(servers=["http://me:secret@a"])
    assert "secret" not in str(caught.value)
