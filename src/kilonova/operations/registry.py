"""All operations by name: what a runner can run."""

from __future__ import annotations

from kilonova.journal.model import Operation
from kilonova.operations.attach_interface import ATTACH_INTERFACE
from kilonova.operations.attach_volume import ATTACH_VOLUME, ATTACH_VOLUME_OFFLOADED
from kilonova.operations.attachments import FREE_VOLUMES
from kilonova.operations.confirm_resize import CONFIRM_RESIZE
from kilonova.operations.create_image import CREATE_IMAGE
from kilonova.operations.create_steps import CREATE
from kilonova.operations.delete import DELETE
from kilonova.operations.detach_interface import DETACH_INTERFACE
from kilonova.operations.detach_volume import DETACH_VOLUME, DETACH_VOLUME_OFFLOADED
from kilonova.operations.evacuate import EVACUATE
from kilonova.operations.live_migrate import LIVE_MIGRATE
from kilonova.operations.offload import OFFLOAD
from kilonova.operations.reboot import REBOOT
from kilonova.operations.resize import RESIZE_SERVER
from kilonova.operations.resume_guest import RESUME_GUEST
from kilonova.operations.revert_resize import REVERT_RESIZE
from kilonova.operations.shelve import SHELVE, SHELVE_AND_OFFLOAD
from kilonova.operations.start import START
from kilonova.operations.stop import STOP
from kilonova.operations.unshelve import UNSHELVE, UNSHELVE_OFFLOADED

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        ATTACH_INTERFACE,
        ATTACH_VOLUME,
        ATTACH_VOLUME_OFFLOADED,
        CONFIRM_RESIZE,
        CREATE,
        CREATE_IMAGE,
        DELETE,
        DETACH_INTERFACE,
        DETACH_VOLUME,
        DETACH_VOLUME_OFFLOADED,
        EVACUATE,
        FREE_VOLUMES,
        LIVE_MIGRATE,
        OFFLOAD,
        REBOOT,
        RESIZE_SERVER,
        RESUME_GUEST,
        REVERT_RESIZE,
        SHELVE,
        SHELVE_AND_OFFLOAD,
        START,
        STOP,
        UNSHELVE,
        UNSHELVE_OFFLOADED,
    )
}
