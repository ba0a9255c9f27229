"""Server groups by OpenStack's own clients, unmodified."""

from __future__ import annotations

from tests.api.served import MEMBER, Served


def test_the_openstack_command(served: Served) -> None:
    made = served.openstack(
        "server", "group", "create", "--policy", "anti-affinity", "--rule", "max_server_per_host=2", "apart",
        "-f", "json", "--os-compute-api-version", "2.64", cloud=MEMBER,
    )  # fmt: skip
    assert (made["name"], made["policy"]) == ("apart", "anti-affinity")
    assert made["rules"] == {"max_server_per_host": 2}
    listed = served.openstack("server", "group", "list", "-f", "json", cloud=MEMBER)
    assert made["id"] in {each["ID"] for each in listed}
    every = served.openstack("server", "group", "list", "--all-projects", "-f", "json")
    assert made["id"] in {each["ID"] for each in every}
    with served.sdk(MEMBER) as sdk:
        network = next(sdk.network.networks(), None)
        server = sdk.create_server(
            "in-a-group",
            image=served.cloud.example_image,
            flavor="42",
            network=network.id if network else None,
            group=made["id"],
            wait=True,
            timeout=100,
        )
        assert sdk.compute.find_server_group("apart").member_ids == [server.id]
        assert sdk.compute.get_server(server.id).server_groups == [made["id"]]
        listed = served.openstack("server", "group", "show", made["id"], "-f", "json", cloud=MEMBER)
        assert listed["members"] in (server.id, [server.id])
        sdk.delete_server(server.id, wait=True, timeout=100)
        assert sdk.compute.get_server_group(made["id"]).member_ids == []
        soft = sdk.compute.create_server_group(name="soft", policy="soft-affinity")
        assert soft.policy == "soft-affinity"
    served.openstack("server", "group", "delete", made["id"], soft.id, cloud=MEMBER)
    told = served.openstack("server", "group", "show", made["id"], cloud=MEMBER, fails=True)
    assert made["id"] in told
