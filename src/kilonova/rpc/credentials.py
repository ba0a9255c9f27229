"""Who may say and hear what on the bus: keys, and the permissions that nats-server holds them to.

An agent speaks as its own host and to controllers only, and hears what is for its host.  Controllers speak to
every host, and answer.  A key is an nkey (Ed25519): the server knows its public half only.
"""

from __future__ import annotations

import re
import secrets
from typing import Literal

import msgspec
import nkeys

from kilonova.errors import Invalid
from kilonova.rpc import subjects

Kind = Literal["agent", "controller"]

# An agent may publish where it has been asked to answer: so often, and for so long.  Its signs of life come
# every two seconds, and a command that takes long is sent again each minute, which begins both anew.  Not for
# longer: nats-server 2.9 goes through all questions that it remembers at each further one (25 ns for each).
RESPONSES = {"max": 150, "expires": "3m"}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,254}")


class Key(msgspec.Struct, frozen=True):
    """``seed`` is the secret: it belongs to one process, and into no log."""

    seed: str
    public: str

    def __repr__(self) -> str:
        return f"Key({self.public})"


def new_key() -> Key:
    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    return Key(seed.decode(), _public(seed))


def public_of(seed: str) -> str:
    """The public half of a key.  Raises Invalid for what is no seed of a user."""
    text = seed.strip()
    if not re.fullmatch(r"SU[A-Z2-7]{56}", text):
        raise Invalid("That is no seed of a user's nkey, which is 58 characters long and begins with 'SU'.")
    return _public(text.encode())


def _public(seed: bytes) -> str:
    pair = nkeys.from_seed(bytearray(seed))
    public: str = pair.public_key.decode()
    pair.wipe()
    return public


def checked_name(kind: Kind, name: str) -> str:
    """Raises Invalid for a name that a host should not have, and for one that would hear what is others'."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"'{name}' is no name of a host: 1 to 255 letters, digits, '.', '-', '_' and ':', the first a "
            "letter or a digit."
        )
    if kind == "agent" and subjects.inbox("", name) == subjects.inbox("", subjects.CONTROLLERS):
        raise Invalid(f"A host cannot be called '{name}': that is whose answers go to the controllers.")
    return name


def permissions(kind: Kind, name: str, prefix: str) -> dict[str, object]:
    """As nats-server takes them."""
    if kind == "controller":
        return {
            "publish": {
                "allow": [f"{prefix}.host.>", f"{prefix}.inbox.>"],
                "deny": [f"{subjects.inbox(prefix, subjects.CONTROLLERS)}.>"],
            },
            "subscribe": {
                "allow": [
                    f"{subjects.from_anybody(prefix)} {subjects.CONTROLLERS}",
                    f"{subjects.inbox(prefix, subjects.CONTROLLERS)}.>",
                ]
            },
        }
    return {
        "publish": {"allow": [subjects.from_host(prefix, name, "*")]},
        "subscribe": {
            "allow": [f"{prefix}.host.{subjects.token(name)}.>", f"{subjects.inbox(prefix, name)}.>"]
        },
        "allow_responses": RESPONSES,
    }
