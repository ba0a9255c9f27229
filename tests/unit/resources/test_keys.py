"""Which public keys are good ones: every kind, and whatever else users may send."""

from __future__ import annotations

import base64
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from kilonova.errors import Invalid
from kilonova.resources import keys

NAMES = (
    "ssh-rsa",
    "ssh-dss",
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-ed25519-cert-v01@openssh.com",
)


def piece(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def line(name: str, blob: bytes, comment: str = "me@here") -> str:
    return f"{name} {base64.b64encode(blob).decode()} {comment}"


def openssh(key: object) -> str:
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    made: bytes = key.public_key().public_bytes(encoding, form)  # type: ignore[attr-defined]
    return made.decode()


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=lambda key: type(key).__name__,
)
def test_keys_of_each_kind_have_the_md5_of_their_blob(key: object) -> None:
    public = openssh(key)
    expected = hashlib.md5(base64.b64decode(public.split()[1])).hexdigest()
    for text in (public, public + "\n", f"{public} a comment of words", "  " + public):
        assert keys.fingerprint("ssh", text).replace(":", "") == expected


def test_keys_on_hardware() -> None:
    name = "sk-ssh-ed25519@openssh.com"
    blob = piece(name.encode()) + piece(b"k" * 32) + piece(b"ssh:")
    assert keys.fingerprint("ssh", line(name, blob)).count(":") == 15
    name = "sk-ecdsa-sha2-nistp256@openssh.com"
    blob = piece(name.encode()) + piece(b"nistp256") + piece(b"\4" + b"k" * 64) + piece(b"ssh:")
    assert keys.fingerprint("ssh", line(name, blob)).count(":") == 15
    for bad in (blob[:-1], blob + b"x", piece(name.encode()), blob + piece(b"more") + piece(b"and more")):
        with pytest.raises(Invalid):
            keys.fingerprint("ssh", line(name, bad))


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    for kind in ("ssh", "x509"):
        with pytest.raises(Invalid):
            keys.fingerprint(kind, text)


@settings(max_examples=300)
@given(st.sampled_from(NAMES), st.lists(st.binary(max_size=64), max_size=4), st.binary(max_size=8))
def test_no_blob_breaks_it(name: str, pieces: list[bytes], rest: bytes) -> None:
    """What begins as a key of that name, and goes on as it likes, is a key or is refused."""
    blob = piece(name.encode()) + b"".join(piece(each) for each in pieces) + rest
    try:
        found = keys.fingerprint("ssh", line(name, blob))
    except Invalid:
        return
    assert found.replace(":", "") == hashlib.md5(blob).hexdigest()


def test_old_and_wrong_kinds_are_refused() -> None:
    public = openssh(ed25519.Ed25519PrivateKey.generate())
    name, blob, *_ = public.split()
    for text in (
        "",
        name,
        blob,
        f"{blob} {name}",
        f"ssh-rsa {blob}",
        f"{name} {blob[:-4]}",
        f"{name} {blob}\n{name} {blob}",
        f"{name} {blob}=",
        openssh_dsa(),
    ):
        with pytest.raises(Invalid, match="fingerprint"):
            keys.fingerprint("ssh", text)


def openssh_dsa() -> str:
    """A key of 1024 bits that no ssh takes any more."""
    numbers = dsa.generate_parameters(1024).parameter_numbers()
    parts = (numbers.p, numbers.q, numbers.g, 4)
    blob = piece(b"ssh-dss") + b"".join(piece(b"\0" + n.to_bytes(128, "big").lstrip(b"\0")) for n in parts)
    return line("ssh-dss", blob[:-3])


def test_what_is_made_is_good() -> None:
    made = keys.generate("ssh", "u1", 1_800_000_000_000_000)
    assert keys.fingerprint("ssh", made.public_key) == made.fingerprint
    certificate = keys.generate("x509", "ü" * 300, 1_800_000_000_000_000)
    assert keys.fingerprint("x509", certificate.public_key) == certificate.fingerprint


def test_names() -> None:
    for name, wide, good in (
        ("a b-c_d", False, True),
        ("a@b.c", False, False),
        ("a@b.c", True, True),
        ("", True, False),
        ("x" * 255, True, True),
        ("x" * 256, True, False),
        ("a/b", True, False),
        ("a\n", True, False),
        ("ä", True, False),
    ):
        if good:
            keys.check_name(name, wide=wide)
        else:
            with pytest.raises(Invalid):
                keys.check_name(name, wide=wide)
