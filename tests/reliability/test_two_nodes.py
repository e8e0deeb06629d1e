"""Two machines, each with torchrun of its own, on loopback and one folder: as two processes of one; and one machine lost."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
from processes import free_port

NODE = Path(__file__).with_name("node.py")
LONGEST = 600  # seconds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Runs the job into a folder below one place, on one machine with two processes or on two with one each."""
    place = tmp_path_factory.mktemp("shared")
    flags = jobs.make_job("classification", place) | {"resume_from_checkpoint": "latest"}
    common = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(place / "cache"),
    }
    common["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)

    def run(output: str, nodes: int, lost: int | None = None) -> tuple[Path, list[int], list[str]]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(nodes)]
        launcher += [
            "--nproc_per_node",
            str(2 // nodes),
            "--master_addr",
            "127.0.0.1",
            "--master_port",
            str(free_port()),
        ]
        argv = [NODE, "classification", *jobs.arguments(flags, place / output)]
        environment = common | ({} if lost is None else {"LOST_NODE": str(lost)})
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        machines = [
            subprocess.Popen([*launcher, "--node_rank", str(rank), *argv], env=environment, **pipes)
            for rank in range(nodes)
        ]
        logs = [machine.communicate(timeout=LONGEST)[0] for machine in machines]
        return place / output, [machine.returncode for machine in machines], logs

    return run


@pytest.fixture(scope="module")
def together(start):
    """What two machines make of the job."""
    output, codes, logs = start("together", 2)
    assert codes == [0, 0], logs
    return output


def test_two_machines_make_what_one_with_two_processes_makes(start, together):
    output, codes, logs = start("one", 1)
    assert codes == [0], logs
    assert jobs.outcome(output) == jobs.outcome(together)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_machine_ends_the_run_which_resumes_as_if_nothing_had_been(start, together, lost):
    output, codes, logs = start(f"lost-{lost}", 2, lost)
    assert codes[lost] == -signal.SIGKILL and codes[1 - lost] not in (0, None), logs
    assert not (output / "adapter").exists() and list(output.glob("checkpoint-*"))
    _, codes, logs = start(f"lost-{lost}", 2)
    assert codes == [0, 0], logs
    assert jobs.outcome(output) == jobs.outcome(together)
