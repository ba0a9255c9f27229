"""Runs ``openstack`` as often as it is asked to on its input, each time in a process forked from one that
has imported it already.  A request is a line of JSON (words, environment), an answer too (code, out, err).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from typing import IO, Any

PRELOADED = (
    "openstack.connection",
    "openstack.compute.v2._proxy",
    "openstackclient.shell",
    "openstackclient.compute.client",
    "openstackclient.compute.v2.flavor",
    "openstackclient.compute.v2.server",
    "openstackclient.image.client",
    "openstackclient.network.client",
    "openstackclient.volume.client",
)
"""What most commands need."""


def child(request: dict[str, Any], out: IO[bytes], err: IO[bytes]) -> int:
    """The command itself; its exit code."""
    os.environ.clear()
    os.environ.update(request["environment"])
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out.fileno(), 1), (err.fileno(), 2)):
        os.dup2(source, target)
    from openstackclient import shell

    try:
        code = shell.main(request["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code or 0)


def run(request: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                code = child(request, out, err)
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        result: dict[str, Any] = {"code": os.waitstatus_to_exitcode(status)}
        for name, file in (("out", out), ("err", err)):
            file.seek(0)
            result[name] = file.read().decode()
        return result


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)
