"""Several processes of one run on this machine, started as a launcher would."""

import atexit
import functools
import random
import socket
import sys
from collections.abc import Sequence

from forked_python import ForkedPython

# What the scripts and the jobs of the tests import, now or when they come to need it.
IMPORTS = (
    "diffusers.optimization",
    "jsonargparse",
    "matplotlib.backends.backend_agg",
    "tensorboard.backend.event_processing.event_accumulator",
    "timm",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "train_scripts.train_classification",
    "train_scripts.train_depth",
    "train_scripts.train_dit",
    "train_scripts.train_language",
)


def free_port() -> int:
    """A port that nobody listens at, none of those that the system gives to whoever asks for any."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def environments(processes: int, **common: str) -> list[dict[str, str]]:
    """What each process of a run must find in its environment; one alone needs nothing of the others.

    accelerate's own launcher starts a single process on a CPU, so tests set what it would.
    """
    common = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **common}
    if processes == 1:
        return [common]
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


@functools.cache
def python() -> ForkedPython:
    """This process's own, with the scripts' imports done."""
    forked = ForkedPython(IMPORTS)
    atexit.register(forked.close)
    return forked


def run_together(command: Sequence[object], processes: int = 2, **common: str) -> list[tuple[int, str]]:
    """Run a file with its arguments in several processes that find each other; the exit code and output of each."""
    results = python().together(*((command, found) for found in environments(processes, **common)))
    for _, _, errors in results:
        sys.stderr.write(errors)
    return [(code, output) for code, output, _ in results]
