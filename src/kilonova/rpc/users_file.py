"""The file with nats-server's users, which ``nats-server.conf`` includes: one comment and one line each.

The comment says whose key it is, the line is what nats-server reads.  All lines are written anew at each
change, so that every user has the permissions of this release.  It holds no secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kilonova.clock import iso_z, parse_iso
from kilonova.errors import Conflict, Failed, NotFound
from kilonova.rpc.credentials import Kind, permissions

HEAD = """\
# Written by `kilonova host add` and `kilonova host remove`: other users belong into another file.
# nats-server.conf includes it within authorization { }; it is read again at `nats-server --signal reload`.
users = [
"""
TAIL = "]\n"

_COMMENT = re.compile(r"  # (agent|controller) (\S+), prefix (\S+), since (\S+)")


class User(msgspec.Struct, frozen=True, kw_only=True):
    """``since`` in microseconds."""

    kind: Kind
    name: str
    prefix: str
    public: str
    since: int

    @property
    def whose(self) -> tuple[str, str, str]:
        return self.prefix, self.kind, self.name


class _Line(msgspec.Struct, frozen=True):
    nkey: str
    permissions: dict[str, object]


def render(users: tuple[User, ...]) -> str:
    return HEAD + "".join(_rendered(each) for each in sorted(users, key=lambda each: each.whose)) + TAIL


def _rendered(user: User) -> str:
    line = _Line(user.public, permissions(user.kind, user.name, user.prefix))
    comment = f"  # {user.kind} {user.name}, prefix {user.prefix}, since {iso_z(user.since)}"
    return f"{comment}\n  {msgspec.json.encode(line).decode()}\n"


def parse(text: str, where: str) -> tuple[User, ...]:
    """Raises Failed for what ``render`` would not have written, at its place."""
    if not (text.startswith(HEAD) and text.endswith(TAIL)):
        raise Failed(f"{where} was not written by `kilonova host`: name another file as [nats]users_file.")
    lines = text[len(HEAD) : -len(TAIL)].splitlines()
    first = HEAD.count("\n") + 1
    if len(lines) % 2:
        raise Failed(f"{where}:{first + len(lines)}: a line is missing.")
    return tuple(_parsed(lines[at], lines[at + 1], f"{where}:{first + at}") for at in range(0, len(lines), 2))


def _parsed(comment: str, line: str, where: str) -> User:
    found = _COMMENT.fullmatch(comment)
    if found is None:
        raise Failed(f"{where}: this comment was not written by `kilonova host`.")
    kind, name, prefix, since = found.groups()
    try:
        public = msgspec.json.decode(line, type=_Line).nkey
        return User(kind=kind, name=name, prefix=prefix, public=public, since=parse_iso(since))  # type: ignore[arg-type]
    except (msgspec.DecodeError, ValueError) as error:
        raise Failed(f"{where}: this user was not written by `kilonova host`: {error}") from error


def read(path: Path) -> tuple[User, ...]:
    """All users; none if there is no file.  Raises Failed."""
    try:
        return parse(path.read_text(), str(path)) if path.exists() else ()
    except (OSError, UnicodeDecodeError) as error:
        raise Failed(f"{path} cannot be read: {error}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone with the file until the end; who comes meanwhile waits.  Raises Failed where none can be."""
    try:
        handle = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failed(
            f"{path} cannot be written: {error.strerror}. Make its directory, or name another file as "
            "[nats]users_file."
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def find(users: tuple[User, ...], whose: tuple[str, str, str]) -> User | None:
    return next((each for each in users if each.whose == whose), None)


def add(path: Path, user: User, *, replace: bool) -> None:
    """Let a user in.  To be called alone (``locked``).

    Raises Conflict for one that is there unless it is to be replaced, Failed for what cannot be written.
    """
    users = read(path)
    known = find(users, user.whose)
    if known is not None and not replace:
        raise Conflict(
            f"The {user.kind} '{user.name}' has a key since {iso_z(known.since)}: --replace gives a new one "
            "and shuts out the old one."
        )
    _write(path, (*(each for each in users if each != known), user))


def remove(path: Path, whose: tuple[str, str, str]) -> User:
    """Shut a user out, and say who it was.  To be called alone.  Raises NotFound."""
    users = read(path)
    known = find(users, whose)
    if known is None:
        raise NotFound(f"There is no {whose[1]} '{whose[2]}' (prefix {whose[0]}) in {path}.")
    _write(path, tuple(each for each in users if each != known))
    return known


def _write(path: Path, users: tuple[User, ...]) -> None:
    """Whole or not at all: nats-server may read it at any moment."""
    draft = path.with_name(path.name + ".new")
    try:
        with draft.open("w") as file:
            file.write(render(users))
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(0o644)  # it has public keys only, and nats-server is another user
        draft.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror}.") from error


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
