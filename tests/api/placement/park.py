"""Providers by name: a host with NUMA cells and devices, a plain one with NICs, shared disks between them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from tests.api.direct import Reply
from tests.api.placement.face import MAX, Face, new

A, B, C = "aggregate-a", "aggregate-b", "aggregate-c"
SHARES, NUMA, MULTI = "MISC_SHARES_VIA_AGGREGATE", "HW_NUMA_ROOT", "COMPUTE_VOLUME_MULTI_ATTACH"


class Park:
    """Providers and aggregates have uuids that are made at their first mention."""

    def __init__(self, face: Face) -> None:
        self.face = face
        self.uuids: dict[str, str] = {}

    def uuid(self, name: str) -> str:
        return self.uuids.setdefault(name, new())

    def name(self, uuid: str) -> str:
        return next(name for name, each in self.uuids.items() if each == uuid)

    async def add(
        self,
        name: str,
        parent: str | None = None,
        *,
        traits: tuple[str, ...] = (),
        aggregates: tuple[str, ...] = (),
        **stock: Any,
    ) -> None:
        """By the API, as others would."""
        call, uuid = self.face.call, self.uuid(name)
        above = None if parent is None else self.uuid(parent)
        body: dict[str, Any] = {"uuid": uuid, "name": name, "parent_provider_uuid": above}
        (await call("POST", "/resource_providers", body)).expect(200)
        for each in stock:
            if each.startswith("CUSTOM_"):
                await call("PUT", f"/resource_classes/{each}")
        for each in traits:
            if each.startswith("CUSTOM_"):
                await call("PUT", f"/traits/{each}")
        inventories = {each: {"total": of} if isinstance(of, int) else of for each, of in stock.items()}
        root = f"/resource_providers/{uuid}"
        for at, (path, key, value) in enumerate(
            (
                ("inventories", "inventories", inventories),
                ("traits", "traits", list(traits)),
                ("aggregates", "aggregates", [self.uuid(each) for each in aggregates]),
            )
        ):
            body = {"resource_provider_generation": at, key: value}
            (await call("PUT", f"{root}/{path}", body)).expect(200)

    async def use(self, name: str, **amounts: int) -> None:
        (await self.face.allocate(new(), {self.uuid(name): amounts})).expect(204)

    async def ask(self, query: str | list[tuple[str, str]], v: int = MAX) -> Reply:
        """Names after @ in the query stand for uuids."""
        pairs = query if isinstance(query, list) else [tuple(each.split("=", 1)) for each in query.split("&")]
        known = [(key, self._filled(value)) for key, value in pairs]
        return await self.face.call("GET", f"/allocation_candidates?{urlencode(known)}", v=v)

    def _filled(self, value: str) -> str:
        for name in sorted(self.uuids, key=len, reverse=True):
            value = value.replace("@" + name, self.uuids[name])
        return value

    async def served(self, query: str, v: int = MAX) -> list[str]:
        """Of each candidate, who serves which group: ``.:cn1 _A:gpu0``."""
        found = (await self.ask(query, v)).expect(200).json
        return sorted(
            " ".join(
                f"{suffix or '.'}:{','.join(sorted(map(self.name, uuids)))}"
                for suffix, uuids in sorted(each["mappings"].items())
            )
            for each in found["allocation_requests"]
        )

    async def taken(self, query: str, v: int = MAX) -> list[str]:
        """Of each candidate, what is taken from whom: ``cn1:VCPU=1 store:DISK_GB=10``."""
        found = (await self.ask(query, v)).expect(200).json
        result = []
        for each in found["allocation_requests"]:
            allocations = each["allocations"]
            if isinstance(allocations, list):
                allocations = {one["resource_provider"]["uuid"]: one for one in allocations}
            words = [
                f"{self.name(uuid)}:" + ",".join(f"{k}={n}" for k, n in sorted(one["resources"].items()))
                for uuid, one in allocations.items()
            ]
            result.append(" ".join(sorted(words)))
        return sorted(result)


async def built(face: Face) -> Park:
    """
    ::

        store (DISK_GB, shares; A)          far (DISK_GB, shares, SSD; C)
          |                                   |
        cn1 (multi-attach; A)               cn2 (VCPU, MEMORY_MB, DISK_GB, GOOD; A, B, C)
          numa0 (VCPU 4, MEMORY_MB)           nic1 (NIC)
            fpga0 (FPGA 1)                      pf11 (VF 4, NET1)   pf12 (VF 4, NET2)
            gpu0 (VGPU 8)                     nic2 (NIC)
          numa1 (VCPU 4, MEMORY_MB, GOOD; B)    pf21 (VF 2, NET1)   pf22 (VF 2, NET2)
            fpga1a (FPGA 1)                     pf23 (VF 2, NET1)   pf24 (VF 2, NET2)
            fpga1b (FPGA 1)                   nic3 (NIC)
                                                pf31 (VF 8, NET1)
    """
    park = Park(face)
    add = park.add
    await add("store", traits=(SHARES,), aggregates=(A,), DISK_GB={"total": 2000, "reserved": 100})
    await add("far", traits=(SHARES, "STORAGE_DISK_SSD"), aggregates=(C,), DISK_GB=500)
    await add("cn1", traits=(MULTI,), aggregates=(A,))
    memory = {"total": 2048, "min_unit": 512, "step_size": 256}
    await add("numa0", "cn1", traits=(NUMA,), VCPU=4, MEMORY_MB=memory)
    memory = {"total": 2048, "min_unit": 256, "max_unit": 1024}
    await add("numa1", "cn1", traits=(NUMA, "CUSTOM_GOOD"), aggregates=(B,), VCPU=4, MEMORY_MB=memory)
    await add("fpga0", "numa0", FPGA=1)
    await add("gpu0", "numa0", VGPU=8)
    await add("fpga1a", "numa1", FPGA=1)
    await add("fpga1b", "numa1", FPGA=1)
    memory = {"total": 2048, "min_unit": 1024, "step_size": 128}
    await add(
        "cn2",
        traits=("CUSTOM_GOOD",),
        aggregates=(A, B, C),
        VCPU={"total": 4, "allocation_ratio": 2.0},
        MEMORY_MB=memory,
        DISK_GB=1000,
    )
    for nic, networks, functions in (("1", "12", 4), ("2", "1212", 2), ("3", "1", 8)):
        await add(f"nic{nic}", "cn2", traits=("CUSTOM_NIC",))
        for at, network in enumerate(networks, 1):
            await add(f"pf{nic}{at}", f"nic{nic}", traits=(f"CUSTOM_NET{network}",), CUSTOM_VF=functions)
    await park.use("numa0", VCPU=2)
    await park.use("cn2", VCPU=3)
    return park
