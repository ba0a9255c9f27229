"""Keys, permissions, and the file with nats-server's users."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kilonova.errors import Conflict, Failed, Invalid, NotFound
from kilonova.rpc import credentials, users_file
from kilonova.rpc.users_file import User

DAY = 86_400_000_000
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,30}", fullmatch=True)
USERS = st.builds(
    User,
    kind=st.sampled_from(["agent", "controller"]),
    name=NAMES,
    prefix=st.sampled_from(["kilonova", "cell-1.kn"]),
    public=st.just(credentials.new_key().public),
    since=st.integers(0, 4_000_000_000).map(lambda seconds: seconds * 1_000_000),
)


def user(name: str, kind: credentials.Kind = "agent", public: str = "UABC") -> User:
    return User(kind=kind, name=name, prefix="kn", public=public, since=DAY)


def test_a_key_is_told_by_its_seed_and_never_shown() -> None:
    one, other = credentials.new_key(), credentials.new_key()
    assert one.seed != other.seed
    assert credentials.public_of(f" {one.seed}\n") == one.public
    assert one.seed.startswith("SU") and one.public.startswith("U")
    assert one.seed not in repr(one) and one.seed not in str(one)


@pytest.mark.parametrize("kind", ["agent", "controller"])
@pytest.mark.parametrize(
    "name", ["", "a b", "a\nb", ".a", "-a", "*", "a>", "x" * 256, "é", 'a"', "a$b", "a/b"]
)
def test_names_that_a_host_should_not_have(kind: credentials.Kind, name: str) -> None:
    with pytest.raises(Invalid, match="no name of a host"):
        credentials.checked_name(kind, name)


def test_an_agent_cannot_have_the_inbox_of_the_controllers() -> None:
    with pytest.raises(Invalid, match="answers go to the controllers"):
        credentials.checked_name("agent", "controllers")
    assert credentials.checked_name("agent", "Controllers") == "Controllers"
    assert credentials.checked_name("controller", "controllers") == "controllers"


@given(st.lists(USERS, max_size=5, unique_by=lambda each: each.whose))
def test_the_file_comes_back_as_it_was_written(users: list[User]) -> None:
    text = users_file.render(tuple(users))
    assert users_file.parse(text, "users") == tuple(sorted(users, key=lambda each: each.whose))


GOOD = users_file.render((user("a"), user("b")))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "was not written"),
        ("users = []\n", "was not written"),
        (GOOD + "more = 1\n", "was not written"),
        (GOOD.replace("  # agent a", "  # my a"), "users:4: this comment"),
        (GOOD.replace('{"nkey":"UABC"', "{", 1), "users:4: this user"),
        (GOOD.replace("since 1970-01-02T00:00:00Z", "since then", 1), "users:4: this user"),
        (GOOD.replace("  # agent b", "  # mine\n  # agent b"), "a line is missing"),
    ],
)
def test_a_file_of_others_is_left_alone(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "users"
    path.write_text(text)
    with pytest.raises(Failed, match=where):
        users_file.add(path, user("c"), replace=True)
    with pytest.raises(Failed):
        users_file.remove(path, user("a").whose)
    assert path.read_text() == text


def test_adding_replacing_and_removing(tmp_path: Path) -> None:
    path = tmp_path / "users"
    users_file.add(path, user("b", public="U1"), replace=False)
    users_file.add(path, user("a", public="U2"), replace=False)
    users_file.add(path, user("a", "controller", public="U3"), replace=False)
    with pytest.raises(Conflict, match=r"agent 'a' has a key since 1970-01-02T00:00:00Z: --replace"):
        users_file.add(path, user("a", public="U4"), replace=False)
    assert [each.public for each in users_file.read(path)] == ["U2", "U1", "U3"]
    users_file.add(path, user("a", public="U4"), replace=True)
    assert users_file.remove(path, user("b").whose).public == "U1"
    assert [each.public for each in users_file.read(path)] == ["U4", "U3"]
    with pytest.raises(NotFound, match="no agent 'b'"):
        users_file.remove(path, user("b").whose)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in tmp_path.iterdir()] == ["users"]


def test_every_change_gives_all_users_the_permissions_of_this_release(tmp_path: Path) -> None:
    path = tmp_path / "users"
    users_file.add(path, user("a"), replace=False)
    path.write_text(path.read_text().replace("kn.from.a.*", "kn.>"))
    users_file.add(path, user("b"), replace=False)
    assert "kn.>" not in path.read_text() and "kn.from.a.*" in path.read_text()


def _add_many(path: Path, prefix: str) -> None:
    for number in range(15):
        with users_file.locked(path):
            users_file.add(path, user(f"{prefix}{number}"), replace=False)


def test_of_those_who_write_at_once_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "users"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_many, args=(path, each)) for each in "abc"]
    for each in writers:
        each.start()
    for each in writers:
        each.join(60)
        assert each.exitcode == 0
    assert len(users_file.read(path)) == 45


def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="Make its directory"), users_file.locked(tmp_path / "absent" / "users"):
        pass
