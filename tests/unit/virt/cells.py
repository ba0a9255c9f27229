"""Machines as libvirt describes their NUMA cells (formatcaps, "host topology")."""

from __future__ import annotations

LAPTOP = """
<cells num='1'>
  <cell id='0'>
    <memory unit='KiB'>16305512</memory>
    <pages unit='KiB' size='4'>4076378</pages>
    <pages unit='KiB' size='2048'>0</pages>
    <distances><sibling id='0' value='10'/></distances>
    <cpus num='4'>
      <cpu id='0' socket_id='0' die_id='0' core_id='0' siblings='0-1'/>
      <cpu id='1' socket_id='0' die_id='0' core_id='0' siblings='0-1'/>
      <cpu id='2' socket_id='0' die_id='0' core_id='1' siblings='2-3'/>
      <cpu id='3' socket_id='0' die_id='0' core_id='1' siblings='2-3'/>
    </cpus>
  </cell>
</cells>
"""
SERVER = """
<cells num='2'>
  <cell id='0'>
    <memory unit='KiB'>131072000</memory>
    <pages unit='KiB' size='4'>30670848</pages>
    <pages unit='KiB' size='2048'>1024</pages>
    <pages unit='KiB' size='1048576'>6</pages>
    <distances><sibling id='0' value='10'/><sibling id='1' value='21'/></distances>
    <cpus num='4'>
      <cpu id='0' socket_id='0' die_id='0' core_id='0' siblings='0,4'/>
      <cpu id='1' socket_id='0' die_id='0' core_id='1' siblings='1,5'/>
      <cpu id='4' socket_id='0' die_id='0' core_id='0' siblings='0,4'/>
      <cpu id='5' socket_id='0' die_id='0' core_id='1' siblings='1,5'/>
    </cpus>
  </cell>
  <cell id='1'>
    <memory unit='KiB'>132120576</memory>
    <pages unit='KiB' size='4'>33030144</pages>
    <pages unit='KiB' size='2048'>0</pages>
    <pages unit='KiB' size='1048576'>0</pages>
    <distances><sibling id='0' value='21'/><sibling id='1' value='10'/></distances>
    <cpus num='4'>
      <cpu id='2' socket_id='1' die_id='0' core_id='0' siblings='2,6'/>
      <cpu id='3' socket_id='1' die_id='0' core_id='1' siblings='3,7'/>
      <cpu id='6' socket_id='1' die_id='0' core_id='0' siblings='2,6'/>
      <cpu id='7' socket_id='1' die_id='0' core_id='1' siblings='3,7'/>
    </cpus>
  </cell>
</cells>
"""
# POWER: 64 KiB pages, cells 0 and 8, threads that are off (no attributes), memory without CPUs in cell 8.
POWER = """
<cells num='2'>
  <cell id='0'>
    <memory unit='KiB'>134217728</memory>
    <pages unit='KiB' size='64'>2097152</pages>
    <pages unit='KiB' size='16384'>0</pages>
    <distances><sibling id='0' value='10'/><sibling id='8' value='40'/></distances>
    <cpus num='4'>
      <cpu id='0' socket_id='0' core_id='8' siblings='0'/>
      <cpu id='1'/>
      <cpu id='8' socket_id='0' core_id='16' siblings='8'/>
      <cpu id='9'/>
    </cpus>
  </cell>
  <cell id='8'>
    <memory unit='GiB'>16</memory>
    <pages unit='KiB' size='64'>262144</pages>
    <distances><sibling id='0' value='40'/><sibling id='8' value='10'/></distances>
    <cpus num='0'/>
  </cell>
</cells>
"""
# One that says as little as it may.
PLAIN = """
<cells num='1'><cell id='0'><memory unit='KiB'>1048576</memory>
<cpus num='2'><cpu id='0'/><cpu id='1'/></cpus></cell></cells>
"""


def capabilities(cells: str) -> str:
    return f"<capabilities><host><topology>{cells}</topology></host></capabilities>"
