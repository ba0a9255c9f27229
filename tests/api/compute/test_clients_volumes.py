"""Volumes of servers by the openstack command and openstacksdk, unmodified."""

from __future__ import annotations

from typing import Any

import pytest

from kilonova.testing.embedded import settled
from tests.api.compute.test_clients_servers import IMAGE, JSON
from tests.api.served import MEMBER, PATIENCE, Served

BOOT = ("--image", IMAGE, "--flavor", "m1.nano", "--nic", "none", "--wait")


@pytest.mark.slow
@pytest.mark.capability("API-45", "API-46")
def test_command_line(served: Served) -> None:
    def mine(*words: str) -> Any:
        return served.openstack(*words, cloud=MEMBER)

    def rest() -> None:
        served.run(settled(served.cloud, uuid, PATIENCE))
        served.run(served.cloud.volume.idle())

    uuid = mine("server", "create", *BOOT, "keeper", *JSON)["id"]
    data = mine("volume", "create", "--size", "1", "data", *JSON)["id"]
    more = mine("volume", "create", "--size", "1", "more", *JSON)["id"]
    rest()
    mine("server", "add", "volume", "keeper", "data", "--device", "/dev/vdc", "--tag", "disk")
    mine("server", "add", "volume", "--enable-delete-on-termination", "keeper", "more")
    rest()
    listed = mine("server", "volume", "list", "keeper", *JSON)
    assert [(each["Volume ID"], each["Device"]) for each in listed] == [
        (data, "/dev/vdc"),
        (more, "/dev/vdb"),
    ]
    assert [(each["Tag"], each["Delete On Termination?"]) for each in listed] == [
        ("disk", False),
        (None, True),
    ]
    shown = mine("server", "show", "keeper", *JSON)["volumes_attached"]
    assert [each["id"] for each in shown] == [data, more]
    volume = mine("volume", "show", "data", *JSON)
    assert (volume["status"], [each["server_id"] for each in volume["attachments"]]) == ("in-use", [uuid])
    mine("server", "volume", "update", "--delete-on-termination", "keeper", data)
    listed = mine("server", "volume", "list", "keeper", *JSON)
    assert [each["Delete On Termination?"] for each in listed] == [True, True]
    mine("server", "volume", "update", "--preserve-on-termination", "keeper", data)

    mine("server", "remove", "volume", "keeper", "data")
    rest()
    assert [each["Volume ID"] for each in mine("server", "volume", "list", "keeper", *JSON)] == [more]
    assert mine("volume", "show", "data", *JSON)["status"] == "available"
    mine("server", "delete", "--wait", "keeper")
    rest()
    assert [each["Name"] for each in mine("volume", "list", *JSON)] == ["data"], "more ended with its server"
    mine("volume", "delete", "data")


@pytest.mark.capability("API-45", "API-46")
def test_openstacksdk(served: Served) -> None:
    with served.sdk(MEMBER) as connection:
        compute, storage = connection.compute, connection.block_storage
        made = compute.create_server(
            name="sdk",
            image_id=connection.image.find_image(IMAGE).id,
            flavor_id=compute.find_flavor("m1.nano").id,
            networks="none",
        )
        compute.wait_for_server(made)
        volume = storage.wait_for_status(storage.create_volume(size=1, name="sdk"), "available")
        added = compute.create_volume_attachment(made, volume)
        assert (added.volume_id, added.device) == (volume.id, "/dev/vdb")
        storage.wait_for_status(volume, "in-use", interval=1)
        (found,) = compute.volume_attachments(made)
        assert (found.volume_id, found.attachment_id) == (
            volume.id,
            storage.get_volume(volume).attachments[0]["attachment_id"],
        )
        assert compute.get_volume_attachment(made, volume).bdm_id == found.bdm_id
        changed = compute.update_volume_attachment(made, volume, delete_on_termination=True)
        assert compute.get_volume_attachment(made, volume).delete_on_termination
        assert changed.volume_id == volume.id
        compute.delete_volume_attachment(made, volume)
        storage.wait_for_status(volume, "available", interval=1)
        assert list(compute.volume_attachments(made)) == []
        connection.attach_volume(made, storage.get_volume(volume), wait=True, timeout=PATIENCE)
        connection.detach_volume(made, storage.get_volume(volume), wait=True, timeout=PATIENCE)
        compute.delete_server(made)
        compute.wait_for_delete(made)
        storage.delete_volume(volume)
