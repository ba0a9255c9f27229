"""The versions of the metadata documents, by date, and what came with which."""

from __future__ import annotations

FOLSOM = "2012-08-10"
GRIZZLY = "2013-04-04"  # random_seed, password
HAVANA = "2013-10-17"  # vendor_data.json
LIBERTY = "2015-10-15"  # project_id, network_data.json
NEWTON_ONE = "2016-06-30"  # devices
NEWTON_TWO = "2016-10-06"  # vendor_data2.json
OCATA = "2017-02-22"  # the VLAN of a device
ROCKY = "2018-08-27"  # vf_trusted of a device
VICTORIA = "2020-10-14"  # dedicated_cpus
LATEST = "latest"

OPENSTACK = (FOLSOM, GRIZZLY, HAVANA, LIBERTY, NEWTON_ONE, NEWTON_TWO, OCATA, ROCKY, VICTORIA)
EC2 = (
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
)


def has(version: str, since: str) -> bool:
    """Whether a version, or "latest", has what came with ``since``.  The dates sort as texts."""
    return version == LATEST or version >= since
