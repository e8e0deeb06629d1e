"""The two tools of this folder on a handful of moments; slow: on many. Both fork their runs off one process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = ["classification", "dit", "depth"]


def reports(tool: str, *args: str, timeout: int) -> list[dict]:
    """What a tool printed: one report per script."""
    command = [sys.executable, str(Path(__file__).with_name(tool)), *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert found, done.stderr[-4000:]
    assert done.returncode == 0, (found, done.stderr[-2000:])
    return found


def check_killed_together(report: dict) -> None:
    for victim in (int(name.removeprefix("killed-")) for name in report if name.startswith("killed-")):
        found = report[f"killed-{victim}"]
        assert found["codes"][victim] == -signal.SIGKILL and found["codes"][1 - victim] == 1
        assert found["seconds"] < 120
        (error,) = found["errors"]
        assert "lost touch with another process" in error and "--resume_from_checkpoint latest" in error
        assert found["resumed"] == [0, 0] and found["same"]


def check_alike(report: dict) -> None:
    """What two processes log and measure is what one does; depth's loss is not a mean over samples."""
    assert report["codes"] == [[0], [0, 0]]
    one, two = report["figures"]
    assert two == pytest.approx(one, rel=2e-2, abs=2e-2)
    one, two = ([value for _, value in curve] for curve in report["losses"])
    assert two == pytest.approx(one, rel=2e-2 if report["script"] == "depth" else 1e-3)


@pytest.mark.timeout(900)
def test_runs_killed_at_random_moments_end_like_unbroken_ones():
    found = reports("kill_anywhere.py", "--kills=2", "--seed=5", timeout=880)
    assert [report["script"] for report in found] == SCRIPTS
    assert all(report["kills"] == 2 and not report["different"] for report in found)


@pytest.mark.timeout(900)
def test_of_two_processes_one_is_killed():
    (report,) = reports("two_processes.py", "--scripts=depth", "--victims=1", timeout=880)
    check_alike(report)
    check_killed_together(report)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workers", [0, 2])
def test_runs_killed_at_many_moments_end_like_unbroken_ones(workers):
    kills = int(os.environ.get("RELIABILITY_KILLS", "50"))
    found = reports("kill_anywhere.py", f"--kills={kills}", f"--workers={workers}", timeout=7200)
    assert all(report["kills"] == kills and report["writing a checkpoint"] for report in found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_of_two_processes_either_is_killed_in_every_script():
    found = reports("two_processes.py", timeout=1800)
    assert [report["script"] for report in found] == SCRIPTS
    for report in found:
        check_alike(report)
        check_killed_together(report)
