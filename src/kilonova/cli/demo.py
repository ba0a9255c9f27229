"""``kilonova demo``: from nothing to a running guest that answers, with every step shown."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from kilonova.cli.demo_client import Answer, DemoClient
from kilonova.cli.demo_cloud import console, ensure_cloud, stop_cloud

STEPS = 7  # of a create
BOOT = 300.0  # seconds that a guest has; under TCG on a busy machine that is not much
IMAGE, NETWORK, KEY = "kn-guest", "demo", "demo"
RULES = (
    {"protocol": "icmp"},
    {"protocol": "tcp", "port_range_min": 22, "port_range_max": 22},
    {"protocol": "tcp", "port_range_min": 80, "port_range_max": 80},
)


@click.command()
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/var/lib/kilonova/demo"),
    show_default=True,
)
@click.option(
    "--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A qcow2 to boot."
)
@click.option("--driver", type=click.Choice(["libvirt", "fake"]), default="libvirt", show_default=True)
@click.option("--port-offset", type=int, default=0)
@click.option("--stop", is_flag=True, help="Shut the demo's servers down, then its cloud.")
def demo(state_dir: Path, image: Path | None, driver: str, port_offset: int, stop: bool) -> None:
    """Start a cloud, boot a server in it and show that it lives."""
    if stop:
        stop_cloud(state_dir)
        return
    ensure_cloud(state_dir, driver, port_offset)
    client = DemoClient(state_dir / "clouds.yaml", "kilonova")
    image_id = ensure_image(client, state_dir, image, driver)
    network_id, name_space = ensure_network(client)
    open_the_group(client)
    server = boot_server(client, image_id, network_id)
    address = _show_server(client, server)
    if driver == "libvirt":
        _follow_console(client, server["id"])
        _fetch_page(name_space, address)
    _farewell(state_dir, server["name"])


# ---- what a server needs ----


def ensure_image(client: DemoClient, state_dir: Path, image: Path | None, driver: str) -> str:
    name = IMAGE if driver == "libvirt" else ""
    found = client.call("image", "GET", f"/v2/images?status=active&name={name}" if name else "/v2/images")
    if found["images"]:
        console.print(f"[green]✓[/] image {found['images'][0]['name']}")
        return str(found["images"][0]["id"])
    if image is None:
        raise click.ClickException("There is no image yet: give one with --image FILE (qcow2).")
    body = {"name": IMAGE, "disk_format": "qcow2", "container_format": "bare"}
    made = client.call("image", "POST", "/v2/images", body)
    columns = (TextColumn("  uploading the image"), BarColumn(), TextColumn("{task.percentage:3.0f}%"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=image.stat().st_size)
        client.upload(made["id"], image, lambda size: progress.advance(task, size))
    console.print(f"[green]✓[/] image {IMAGE} uploaded ({image.stat().st_size >> 20} MiB)")
    return str(made["id"])


def ensure_network(client: DemoClient) -> tuple[str, str]:
    """The id of the demo's network, and the name of its namespace on this host."""
    found = client.call("network", "GET", f"/v2.0/networks?name={NETWORK}")["networks"]
    if found:
        network = found[0]
        console.print(f"[green]✓[/] network {NETWORK}")
    else:
        network = client.call("network", "POST", "/v2.0/networks", {"network": {"name": NETWORK}})["network"]
        subnet = {"network_id": network["id"], "cidr": "10.20.0.0/24", "ip_version": 4, "name": "demo-subnet"}
        client.call("network", "POST", "/v2.0/subnets", {"subnet": subnet})
        console.print(f"[green]✓[/] network {NETWORK} made, 10.20.0.0/24")
    from kilonova.l2agent.namespace import namespace_name

    return str(network["id"]), namespace_name(str(network["id"]))


def open_the_group(client: DemoClient) -> None:
    """Let ping, SSH and HTTP into the default security group."""
    groups = client.call("network", "GET", "/v2.0/security-groups?name=default")["security_groups"]
    group = next(each for each in groups if each["project_id"] == client.project_id)
    have = {(rule["protocol"], rule["port_range_min"]) for rule in group["security_group_rules"]}
    for rule in RULES:
        if (rule["protocol"], rule.get("port_range_min")) not in have:
            body = {"security_group_id": group["id"], "direction": "ingress", "ethertype": "IPv4", **rule}
            client.call("network", "POST", "/v2.0/security-group-rules", {"security_group_rule": body})
    console.print("[green]✓[/] security group default lets in ping, SSH and HTTP")


# ---- the server ----


def boot_server(client: DemoClient, image_id: str, network_id: str) -> dict[str, Any]:
    """Create a server and follow the steps of the operation."""
    existing = client.call("compute", "GET", "/servers?name=^demo-")["servers"]
    numbers = [int(each["name"][5:]) for each in existing if each["name"][5:].isdigit()]
    name = f"demo-{max(numbers, default=0) + 1}"
    body = {"name": name, "imageRef": image_id, "flavorRef": "42", "networks": [{"uuid": network_id}]}
    answer = client.call("compute", "POST", "/servers", {"server": body})
    uuid = answer["server"]["id"]
    request_id = answer.headers["x-compute-request-id"]
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{name}: place", total=STEPS)
        while True:
            server = client.call("compute", "GET", f"/servers/{uuid}")["server"]
            action: Answer = client.call(
                "compute", "GET", f"/servers/{uuid}/os-instance-actions/{request_id}"
            )
            events = action["instanceAction"].get("events", [])
            doing = events[-1]["event"].split("_", 1)[-1].replace("_", " ") if events else "place"
            progress.update(task, completed=len(events), description=f"{name}: {doing}")
            if server["status"] == "ACTIVE":
                progress.update(task, completed=STEPS, description=f"{name}: running")
                return dict(server)
            if server["status"] == "ERROR":
                raise click.ClickException(f"{name} failed: {server['fault']['message']}")
            time.sleep(0.1)


def _show_server(client: DemoClient, server: dict[str, Any]) -> str:
    addresses = [each["addr"] for some in server["addresses"].values() for each in some]
    console.print(f"[green]✓[/] {server['name']} is {server['status']}, address {', '.join(addresses)}")
    return str(addresses[0]) if addresses else ""


def _follow_console(client: DemoClient, uuid: str) -> None:
    """Show what the guest writes until it says that it is ready."""
    seen, until = 0, time.monotonic() + BOOT
    console.print("[dim]console of the guest:[/]")
    while time.monotonic() < until:
        answer = client.call("compute", "POST", f"/servers/{uuid}/action", {"os-getConsoleOutput": {}})
        lines = [line.rstrip("\r") for line in answer["output"].split("\n")]
        for line in lines[seen:-1]:
            console.print(f"  [dim]│[/] {escape(line)}", highlight=False, soft_wrap=True)
        seen = max(len(lines) - 1, seen)
        if any(line.startswith("kn: ") and line.endswith(" ready") for line in lines):
            return
        time.sleep(0.5)
    raise click.ClickException(f"The guest was not ready within {BOOT:.0f} s.")


def _fetch_page(name_space: str, address: str) -> None:
    from kilonova.errors import KilonovaError
    from kilonova.l2agent.reach import open_connection_in

    async def fetch() -> str:
        reader, writer = await open_connection_in(name_space, address, 80)
        writer.write(f"GET / HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
        async with asyncio.timeout(20):
            page = (await reader.read()).decode(errors="replace")
        writer.close()
        return page.split("\r\n\r\n", 1)[-1].strip()

    try:
        page = asyncio.run(fetch())
    except (KilonovaError, TimeoutError) as error:
        raise click.ClickException(f"The guest does not answer on http://{address}/: {error}") from error
    console.print(f"[green]✓[/] http://{address}/ says: {page}")


def _farewell(state_dir: Path, name: str) -> None:
    text = (
        f"source {Path(sys.executable).parent}/activate\n"
        f"export OS_CLIENT_CONFIG_FILE={state_dir}/clouds.yaml\n"
        "export OS_CLOUD=kilonova\n"
        "openstack server list\n"
        f"openstack console log show {name}\n"
        f"openstack server event list {name}"
    )
    console.print(Panel(text, title="The cloud runs on; `make down` ends it. Try", expand=False))
