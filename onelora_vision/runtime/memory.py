"""How much memory this process may still take."""

import contextlib
import os
import shutil
from pathlib import Path

_GROUP, _SHARED = Path("/sys/fs/cgroup"), Path("/dev/shm")  # of a container; where shared memory is a file system


def available_shared_memory() -> int:
    """Bytes that can be taken as memory that processes share: what the machine, the container and /dev/shm have left."""
    import psutil

    left = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # no such group, or one without a limit ("max")
        left.append(int((_GROUP / "memory.max").read_text()) - int((_GROUP / "memory.current").read_text()))
    if _SHARED.is_dir():
        left.append(shutil.disk_usage(_SHARED).free)
    return max(min(left), 0)


def processes_here() -> int:
    """Processes of this run on this machine, as torchrun and accelerate's launcher count them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
