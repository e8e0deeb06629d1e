"""How much memory this process may still use."""

import contextlib
import os
import shutil
from pathlib import Path

_GROUP, _SHARED = Path("/sys/fs/cgroup"), Path("/dev/shm")  # of a container; file system of shared memory


def available_shared_memory() -> int:
    """Bytes still available for memory shared by processes, within the limits of machine, container and /dev/shm."""
    import psutil

    left = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
        left.append(int((_GROUP / "memory.max").read_text()) - int((_GROUP / "memory.current").read_text()))
    if _SHARED.is_dir():
        left.append(shutil.disk_usage(_SHARED).free)
    return max(min(left), 0)


def processes_here() -> int:
    """Number of this run's processes on this machine, as set by torchrun and accelerate's launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
