"""``kilonova host add``, ``list`` and ``remove``: who may use the bus of a cloud of many hosts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kilonova.clock import SystemClock, iso_z
from kilonova.errors import Conflict, Failed, KilonovaError

if TYPE_CHECKING:
    from kilonova.rpc.credentials import Key
    from kilonova.rpc.users_file import User
    from kilonova.settings import Settings

ETC = Path("/etc/kilonova")  # where the files will lie on the machine that they are for
RELOAD = (
    "Have nats-server read its users again: `systemctl reload nats-server` (or `nats-server --signal reload`)"
)

config_file_option = click.option(
    "--config-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The controllers' kilonova.conf, whose [nats] it reads.",
)
users_file_option = click.option(
    "--users-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file with nats-server's users; default: [nats]users_file.",
)
controller_option = click.option(
    "--controller", "kind", flag_value="controller", help="NAME is a controller, not a host."
)


@click.command("add")
@click.argument("name")
@controller_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for what the machine gets; default: ./NAME.",
)
@click.option("--server", "servers", multiple=True, help="Where it finds NATS; default: [nats]servers.")
@click.option("--replace", is_flag=True, help="Make a new key for one that has one, which is shut out.")
@users_file_option
@config_file_option
def add(
    name: str,
    kind: str | None,
    out: Path | None,
    servers: tuple[str, ...],
    replace: bool,
    users_file: Path | None,
    config_file: Path | None,
) -> None:
    """Let the agent of host NAME onto the bus: makes its key and its configuration.

    NAME is what the host is called everywhere ([DEFAULT]host).  The secret key is only in the directory that
    is written; nats-server learns of the public one.
    """
    settings = _settings(config_file)
    try:
        from kilonova.rpc import credentials
        from kilonova.rpc import users_file as file
        from kilonova.rpc.nats_options import bus_options

        prefix = bus_options(settings).prefix
        user_kind: credentials.Kind = "controller" if kind else "agent"
        credentials.checked_name(user_kind, name)
        path, key = _users_file(settings, users_file), credentials.new_key()
        user = file.User(
            kind=user_kind, name=name, prefix=prefix, public=key.public, since=SystemClock().now()
        )
        out = out or Path(name)
        with file.locked(path):
            known = file.find(file.read(path), user.whose)
            if known is None or replace:  # else `add` says why not
                made = _write_out(out, user, key, settings, servers, replace)
            file.add(path, user, replace=replace)
    except KilonovaError as error:
        raise click.ClickException(str(error)) from error
    except ImportError as error:
        raise click.ClickException(f"This needs NATS' client: {error}. Install kilonova[fleet].") from error
    for each in made:
        click.echo(f"written: {each}")
    click.echo(f"{user.kind} {name} may use the bus with the key {key.public}: {path}")
    click.echo(f"{RELOAD}, and put the files of {out} into {ETC} of that machine.")
    _warn_of_loopback(servers or _servers(settings))


@click.command("list")
@users_file_option
@config_file_option
def list_(users_file: Path | None, config_file: Path | None) -> None:
    """Who may use the bus: kind, name, public key, and since when."""
    from kilonova.rpc import users_file as file

    settings = _settings(config_file)
    try:
        users = file.read(_users_file(settings, users_file))
    except KilonovaError as error:
        raise click.ClickException(str(error)) from error
    for each in users:
        click.echo(f"{each.kind}\t{each.name}\t{each.public}\t{iso_z(each.since)}\t{each.prefix}")


@click.command("remove")
@click.argument("name")
@controller_option
@users_file_option
@config_file_option
def remove(name: str, kind: str | None, users_file: Path | None, config_file: Path | None) -> None:
    """Shut the agent of host NAME out of the bus.

    Its servers and its compute service stay known: move or delete them first, and then take the service away
    with `openstack compute service delete`.
    """
    from kilonova.rpc import users_file as file
    from kilonova.rpc.nats_options import bus_options

    settings = _settings(config_file)
    try:
        path = _users_file(settings, users_file)
        with file.locked(path):
            user = file.remove(path, (bus_options(settings).prefix, kind or "agent", name))
    except KilonovaError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{user.kind} {name} may not use the bus any more (key {user.public}): {path}")
    click.echo(f"{RELOAD}: until then it is still connected.")


def _settings(config_file: Path | None) -> Settings:
    from oslo_config import cfg

    from kilonova.settings import Settings, read_options

    try:
        return Settings(state_dir=Path("/nonexistent"), options=read_options(config_file))
    except cfg.Error as error:
        raise click.ClickException(f"{config_file}: {error}") from error


def _users_file(settings: Settings, given: Path | None) -> Path:
    return (given or Path(settings.text("users_file", "nats"))).absolute()


def _servers(settings: Settings) -> tuple[str, ...]:
    return tuple(str(each) for each in settings.listed("servers", "nats"))


def _write_out(
    out: Path, user: User, key: Key, settings: Settings, servers: tuple[str, ...], replace: bool
) -> list[Path]:
    """What the machine gets.  Raises Conflict for a directory that has a key already, Failed."""
    from kilonova.state_dir import write_secret

    seed, conf = out / f"{user.kind}.nk", out / "kilonova.conf"
    if seed.exists() and not replace:
        raise Conflict(f"{seed} is there already: choose another --out, or --replace it.")
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_secret(seed, f"{key.seed}\n")
        made = [seed]
        authority = settings.text("ca_file", "nats")
        if user.kind == "agent":
            if authority:
                made.append(Path(shutil.copy(authority, out / "nats-ca.pem")))
            conf.write_text(_conf(user, settings, servers, bool(authority)))
            made.append(conf)
    except OSError as error:
        raise Failed(f"{error.filename or out} cannot be read or written: {error.strerror}.") from error
    return made


def _conf(user: User, settings: Settings, servers: tuple[str, ...], tls: bool) -> str:
    lines: list[tuple[str, Any]] = [
        ("servers", ",".join(servers or _servers(settings))),
        ("subject_prefix", user.prefix),
        ("nkey_seed_file", ETC / f"{user.kind}.nk"),
    ]
    if tls:
        lines.append(("ca_file", ETC / "nats-ca.pem"))
    bus = "".join(f"{name} = {value}\n" for name, value in lines).replace("$", "$$")
    return (
        f"# The agent of host {user.name}, made by `kilonova host add`.\n"
        f"[DEFAULT]\nhost = {user.name}\n# my_ip = the address at which other hosts reach this one\n\n"
        f"[nats]\n{bus}"
    )


def _warn_of_loopback(servers: tuple[str, ...]) -> None:
    if any(name in each for each in servers for name in ("//127.", "//localhost", "//[::1]")):
        click.echo(
            f"Note: NATS is to be found at {', '.join(servers)}, which is this machine only: --server names "
            "it for others.",
            err=True,
        )
