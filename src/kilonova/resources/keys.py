"""Key pairs: which public keys are good ones, their fingerprints, and making new ones.

Fingerprints are MD5 of the key for ssh (RFC 4716) and SHA-1 of the certificate for x509, as Nova shows them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from kilonova.errors import Invalid

SSH, X509 = "ssh", "x509"
BITS = 2048
LIFETIME = timedelta(days=3650)

_OLD_NAME = re.compile(r"[a-zA-Z0-9 _\-]{1,255}")
_NAME = re.compile(r"[a-zA-Z0-9 _\-@.]{1,255}")
_PRINCIPAL = ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")  # Windows' user principal name
_SECURITY_KEYS = ("sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    private_key: str
    public_key: str
    fingerprint: str


def check_name(name: str, *, wide: bool) -> None:
    """Raises Invalid.  ``wide`` (2.92): names may have ``@`` and ``.`` in them."""
    if not (_NAME if wide else _OLD_NAME).fullmatch(name):
        allowed = (
            "letters, digits, space, '_', '-', '@' and '.'" if wide else "letters, digits, space, '_' and '-'"
        )
        raise Invalid(
            f"Keypair data is invalid: Keypair name contains unsafe characters or is not 1 to 255 long: "
            f"it may have {allowed}."
        )


def fingerprint(kind: str, public_key: str) -> str:
    """Of a key that is imported.  Raises Invalid for what is no such key."""
    return _ssh_fingerprint(public_key) if kind == SSH else _x509_fingerprint(public_key)


def _in_pairs(digest: bytes) -> str:
    return digest.hex(":")


def _bad() -> Invalid:
    return Invalid("Keypair data is invalid: failed to generate fingerprint")


def _ssh_fingerprint(public_key: str) -> str:
    parts = public_key.split(None, 2)
    if len(parts) < 2 or "\n" in public_key.strip():
        raise _bad()
    name = parts[0]
    try:
        blob = base64.b64decode(parts[1].encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise _bad() from error
    if not _begins_with_name(blob, name) or base64.b64encode(blob).decode() != parts[1]:
        raise _bad()  # Python lets '=' pass that sshd does not
    if name in _SECURITY_KEYS:
        _check_security_key(blob)
    else:
        try:
            serialization.load_ssh_public_key(f"{name} {parts[1]}".encode())
        except (ValueError, UnsupportedAlgorithm, IndexError) as error:
            raise _bad() from error
    return _in_pairs(hashlib.md5(blob, usedforsecurity=False).digest())


def _begins_with_name(blob: bytes, name: str) -> bool:
    """A key says its own kind first: four bytes of length, and the name."""
    expected = name.encode()
    return blob[:4] == struct.pack(">I", len(expected)) and blob[4 : 4 + len(expected)] == expected


def _check_security_key(blob: bytes) -> None:
    """Keys on hardware are of three or four fields, the last of which is the application."""
    at, count = 0, 0
    while at < len(blob):
        if at + 4 > len(blob):
            raise _bad()
        (length,) = struct.unpack_from(">I", blob, at)
        at += 4 + length
        count += 1
    if at != len(blob) or count not in (3, 4):
        raise _bad()


def _x509_fingerprint(certificate: str) -> str:
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad() from error
    return _in_pairs(found.fingerprint(hashes.SHA1()))


def generate(kind: str, user_id: str, now: int) -> NewKey:
    """A new key pair, for microversions below 2.92.  Takes a tenth of a second: run it in a thread.

    ``now`` (microseconds) begins the life of an x509 certificate.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()
    if kind == SSH:
        encoded = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        public = f"{encoded.decode()} Generated-by-Kilonova\n"
    else:
        public = _certificate(key, user_id, now)
    return NewKey(private_key=private, public_key=public, fingerprint=fingerprint(kind, public))


def _certificate(key: rsa.RSAPrivateKey, user_id: str, now: int) -> str:
    """A certificate that Windows accepts for a user's log-in (WinRM)."""
    name = user_id.encode()[:64].decode(errors="ignore")  # as long as X.509 lets a name be
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name or "user")])
    start = datetime.fromtimestamp(now // 1_000_000, UTC)
    principal = x509.OtherName(_PRINCIPAL, _der_text(f"{user_id}@localhost"))
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + LIFETIME)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([principal]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM).decode()


def _der_text(text: str) -> bytes:
    """A UTF8String in DER."""
    content = text.encode()
    size = len(content)
    if size < 128:
        return b"\x0c" + bytes([size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return b"\x0c" + bytes([0x80 | len(octets)]) + octets + content
