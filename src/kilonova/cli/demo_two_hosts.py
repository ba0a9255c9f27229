"""``kilonova demo-two-hosts``: a real guest goes live from one host to the other, and its peers watch."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kilonova.cli.demo import boot_server, ensure_image, ensure_network, open_the_group
from kilonova.cli.demo_client import DemoClient
from kilonova.cli.demo_cloud import console
from kilonova.cli.demo_two_hosts_report import Moment, show_silence, show_tags
from kilonova.errors import KilonovaError
from kilonova.testing.fleet.daemon import DidNotStart
from kilonova.testing.lab.cloud import LabCloud
from kilonova.testing.lab.host import Complaint, Host
from kilonova.testing.lab.station import PROBE, TICKS, Station, StationPort, pings, said, ticks

BOOT = 300.0  # seconds that a guest has; under TCG on a busy machine that is not much
MOVE = 180.0
AFTER = 3.0  # seconds that the peers go on watching
LIMIT = "live_migration_bandwidth = 20"  # MiB a second: so that there is something to be seen


@click.command("demo-two-hosts")
@click.option(
    "--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, help="A qcow2."
)
@click.option("--keep", is_flag=True, help="Keep the scratch directory with all logs.")
def demo_two_hosts(image: Path, keep: bool) -> None:
    """Boot a server on one of two hosts and live-migrate it under a ping and an open TCP connection.

    Run it by tools/sandbox.sh, as `make demo-two-hosts` does: so nothing of it can be left on the machine.
    """
    directory = Path(tempfile.mkdtemp(prefix="kn-two-"))  # short: sockets are below it
    cloud = LabCloud(directory, libvirt=LIMIT)
    try:
        _demo(cloud, image)
    except (DidNotStart, KilonovaError, TimeoutError, Complaint) as error:
        keep = True
        raise click.ClickException(f"{error or 'It took too long.'}\nLogs are in {directory}.") from error
    finally:
        with console.status("ending both hosts and all processes"):
            asyncio.run(cloud.down())
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def _said(text: str) -> None:
    console.print(f"[green]✓[/] {escape(text)}")


def _demo(cloud: LabCloud, image: Path) -> None:
    with console.status("two hosts") as status:
        asyncio.run(cloud.up(2, lambda text: status.update(f"starting: {text}")))
    _said("two hosts with libvirt, QEMU and Open vSwitch; PostgreSQL, NATS, a controller, two agents")
    yaml = cloud.fleet.clouds_yaml()
    client, admin = DemoClient(yaml, "kilonova"), DemoClient(yaml, "kilonova-admin")
    image_id = ensure_image(client, cloud.directory, image, "libvirt")
    network_id, _ = ensure_network(client)
    open_the_group(client)
    for host in cloud.lab.hosts:
        tags = host.spawn("tags", *PROBE, "tags", "/run/openvswitch/db.sock")
        asyncio.run(tags.start(b"{"))
    marks = [Moment(at=time.monotonic(), text="the server is asked for")]
    server = boot_server(client, image_id, network_id)
    marks.append(Moment(at=time.monotonic(), text="it is ACTIVE"))
    source = cloud.host(_host_of(admin, server))
    target = cloud.other(source.name)
    address = str(next(iter(server["addresses"].values()))[0]["addr"])
    _said(f"{server['name']} is ACTIVE on {source.name}, address {address}")
    station = _station(admin, network_id, source)
    _wait_answer(station, address)
    _said(f"http://{address}/ answers a neighbour of the same network, {station.port.address}")
    ping, stream = station.probe("ping", address, "0.02"), station.probe("stream", address, TICKS)
    for probe in (ping, stream):
        asyncio.run(probe.start(b"{"))
    _pass(2.0)
    _said("the neighbour pings it fifty times a second and listens to it on an open TCP connection")
    _migrate(admin, server, target, marks)
    _pass(AFTER)
    show_silence(pings(said(ping)), ticks(said(stream)), broken="closed" in str(said(stream)[-1]))
    port_id = _port_of(admin, server)
    show_tags({host.name: said(host.daemons["tags"]) for host in cloud.lab.hosts}, port_id, marks)
    client.call("compute", "DELETE", f"/servers/{server['id']}")


def _host_of(admin: DemoClient, server: dict[str, Any]) -> str:
    answer = admin.call("compute", "GET", f"/servers/{server['id']}")
    return str(answer["server"]["OS-EXT-SRV-ATTR:host"])


def _port_of(admin: DemoClient, server: dict[str, Any]) -> str:
    found = admin.call("network", "GET", f"/v2.0/ports?device_id={server['id']}")["ports"]
    return str(found[0]["id"])


def _pass(seconds: float) -> None:
    """Let the neighbour go on."""
    time.sleep(seconds)


def _station(admin: DemoClient, network_id: str, host: Host) -> Station:
    """A neighbour of the guest, which stays where the guest begins."""
    network = admin.call("network", "GET", f"/v2.0/networks/{network_id}")["network"]
    wanted = {
        "network_id": network_id,
        "project_id": network["project_id"],
        "binding:host_id": host.name,
        "device_owner": "compute:nova",
        "name": "neighbour",
    }
    port = admin.call("network", "POST", "/v2.0/ports", {"port": wanted})["port"]
    address = f"{port['fixed_ips'][0]['ip_address']}/24"
    about = StationPort(port_id=port["id"], mac=port["mac_address"], address=address, mtu=int(network["mtu"]))
    station = Station(host, about)
    station.plug()
    station.wait_wired()
    return station


def _wait_answer(station: Station, address: str) -> None:
    deadline = time.monotonic() + BOOT
    with console.status(f"waiting until the guest answers on http://{address}/"):
        while not station.page(address):
            if time.monotonic() > deadline:
                raise click.ClickException(f"The guest does not answer within {BOOT:.0f} s.")


def _migrate(admin: DemoClient, server: dict[str, Any], target: Host, marks: list[Moment]) -> None:
    """Ask for it and follow it to its end.  Raises ClickException when it does not get there."""
    path, begun = f"/servers/{server['id']}", time.monotonic()
    marks.append(Moment(at=begun, text="the live migration is asked for"))
    wish = {"os-migrateLive": {"host": target.name, "block_migration": "auto"}}
    admin.call("compute", "POST", f"{path}/action", wish)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task, status = progress.add_task(f"to {target.name}", total=100), ""
        while status not in ("completed", "failed", "error", "cancelled"):
            found = admin.call("compute", "GET", f"/os-migrations?instance_uuid={server['id']}")
            now = found["migrations"][0]["status"]
            if now != status:
                marks.append(Moment(at=time.monotonic(), text=f"migration {now}"))
            status = now
            done = admin.call("compute", "GET", path)["server"].get("progress", 0)
            percent = 100 if status == "completed" else done
            progress.update(task, completed=percent, description=f"to {target.name}: {status}")
            if time.monotonic() - begun > MOVE:
                raise click.ClickException(f"The migration is {status} after {MOVE:.0f} s.")
            _pass(0.1)
    if status != "completed":
        raise click.ClickException(f"The migration is {status}.")
    _said(f"{server['name']} runs on {_host_of(admin, server)} after {time.monotonic() - begun:.1f} s")
