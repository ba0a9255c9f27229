"""Shelving and images of servers by the openstack command and openstacksdk, unmodified."""

from __future__ import annotations

from kilonova.testing.embedded import settled
from tests.api.compute.test_clients_servers import IMAGE, JSON
from tests.api.served import ADMIN, MEMBER, PATIENCE, Served

BOOT = ("--image", IMAGE, "--flavor", "m1.nano", "--network", "private", "--wait")


def test_command_line(served: Served) -> None:
    def mine(*words: str) -> object:
        return served.openstack(*words, cloud=MEMBER)

    made = served.openstack("server", "create", *BOOT, "put away", *JSON, cloud=MEMBER)
    mine("server", "shelve", "--wait", "put away")
    shown = served.openstack("server", "show", made["id"], *JSON, cloud=ADMIN)
    assert (shown["status"], shown["OS-EXT-SRV-ATTR:host"]) == ("SHELVED_OFFLOADED", None)
    assert shown["addresses"] == made["addresses"]
    listed = served.openstack("image", "list", "--name", "put away-shelved", "--long", *JSON, cloud=MEMBER)
    assert [(each["Status"], each["Visibility"]) for each in listed] == [("active", "private")]
    mine("server", "unshelve", "--wait", "put away")
    listed = served.openstack("image", "list", "--name", "put away-shelved", *JSON, cloud=MEMBER)
    assert listed == []
    host = served.openstack("hypervisor", "list", *JSON, cloud=ADMIN)[0]["Hypervisor Hostname"]
    for where in (("--availability-zone", "nova"), ("--host", host), ("--no-availability-zone",), ()):
        mine("server", "shelve", "--wait", "put away")
        served.openstack("server", "unshelve", "--wait", *where, made["id"], cloud=ADMIN)
        shown = served.openstack("server", "show", made["id"], *JSON, cloud=ADMIN)
        assert (shown["status"], shown["OS-EXT-AZ:availability_zone"]) == ("ACTIVE", "nova")
    served.openstack("server", "delete", "--wait", "put away", cloud=MEMBER)


def test_command_line_makes_images(served: Served) -> None:
    model = served.openstack("server", "create", *BOOT, "model", *JSON, cloud=MEMBER)
    words = ["--name", "of model", "--property", "a=b", "model"]
    made = served.openstack("server", "image", "create", *words, *JSON, cloud=MEMBER)
    assert made["name"] == "of model"
    served.run(settled(served.cloud, model["id"], PATIENCE))
    shown = served.openstack("image", "show", made["id"], *JSON, cloud=MEMBER)
    assert (shown["status"], shown["properties"]["a"]) == ("active", "b")
    words = ["--image", "of model", *BOOT[2:]]
    again = served.openstack("server", "create", *words, "like model", *JSON, cloud=MEMBER)
    assert again["status"] == "ACTIVE"
    served.openstack("server", "delete", "--wait", "model", "like model", cloud=MEMBER)
    served.openstack("image", "delete", "of model", cloud=MEMBER)


def test_openstacksdk(served: Served) -> None:
    with served.sdk(MEMBER) as connection, served.sdk(ADMIN) as admin:
        compute = connection.compute
        made = compute.create_server(
            name="sdk",
            image_id=connection.image.find_image(IMAGE).id,
            flavor_id=compute.find_flavor("m1.nano").id,
            networks=[{"uuid": connection.network.find_network("private").id}],
        )
        compute.wait_for_server(made)
        image = compute.create_server_image(made, "sdk-image", metadata={"a": "b"}, wait=True)
        assert (image.status, image.properties["a"]) == ("active", "b")
        compute.shelve_server(made)
        compute.wait_for_server(made, status="SHELVED_OFFLOADED", interval=0.1)
        host = next(iter(admin.compute.hypervisors())).name
        admin.compute.unshelve_server(made.id, host=host)
        compute.wait_for_server(made, interval=0.1)
        compute.delete_server(made)
        compute.wait_for_delete(made, interval=0.1)
        connection.image.delete_image(image)
