"""Several processes of one run on this machine, started as a launcher would."""

import os
import socket
import subprocess
from collections.abc import Sequence


def environments(processes: int, **common: str) -> list[dict[str, str]]:
    """What each process of a run must find in its environment; one alone needs nothing of the others.

    accelerate's own launcher starts a single process on a CPU, so tests set what it would.
    """
    common = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **common}
    if processes == 1:
        return [common]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def run_together(command: Sequence[object], processes: int = 2, **common: str) -> list[tuple[int, str]]:
    """Run a command in several processes that find each other; the exit code and output of each."""
    started = [
        subprocess.Popen(list(map(str, command)), env={**os.environ, **found}, stdout=subprocess.PIPE, text=True)
        for found in environments(processes, **common)
    ]
    outputs = [process.communicate(timeout=200)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs)]
