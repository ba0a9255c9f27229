"""Throw-away hosts with libvirt, QEMU and Open vSwitch, on one machine: see `lab.Lab`."""
