"""Kilonova: the compute service of an OpenStack cloud, whole in one process or spread over many hosts."""

__version__ = "0.1.0"
