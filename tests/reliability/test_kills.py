"""The two tools of this folder on a handful of moments; slow: on many. Both fork their runs off their own process."""

import json
import os
import signal
from pathlib import Path

import pytest
from processes import python

SCRIPTS = ["classification", "dit", "depth", "language"]


def reports(tool: str, *arguments: str) -> list[dict]:
    """What a tool of this folder printed, run with these arguments in a process of its own: a report per script."""
    ((code, output, errors),) = python().together(([Path(__file__).with_name(f"{tool}.py"), *arguments], {}))
    assert code == 0, output + errors[-4000:]
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def check_killed_together(report: dict) -> None:
    for victim in (int(name.removeprefix("killed-")) for name in report if name.startswith("killed-")):
        found = report[f"killed-{victim}"]
        assert found["codes"][victim] == -signal.SIGKILL and found["codes"][1 - victim] == 1
        (error,) = found["errors"]
        assert "lost contact with another process" in error and "--resume_from_checkpoint latest" in error
        assert found["resumed"] == [0, 0] and found["same"]


def check_alike(report: dict) -> None:
    """What two processes log and measure is what one does, as far as a sample's loss does not depend on its batch:
    depth's loss is a root of a mean, and mixup mixes the samples of one process."""
    assert report["codes"] == [[0], [0, 0]]
    one, two = report["figures"]
    assert two == pytest.approx(one, rel=5e-2, abs=5e-2)
    one, two = ([value for _, value in curve] for curve in report["losses"])
    assert two == pytest.approx(one, rel=1e-3 if report["script"] in ("dit", "language") else 5e-2)


def check_sharded(report: dict) -> None:
    """A base shared between two processes changes nothing but, by where its tensors lie in memory, the rounding."""
    sharded, whole = report["sharded"], report["sharded"]["as"]
    assert sharded["codes"] == [0, 0] and sharded["files"] == whole["files"]
    assert sharded["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    for when in ("before", "after"):
        assert sharded["figures"][when] == pytest.approx(whole["figures"][when], rel=1e-4)


@pytest.mark.timeout(1800)
def test_runs_killed_at_random_moments_and_one_of_two_processes_killed():
    """Each script is killed, depth on two processes."""
    kills = ["--kills=2", "--seed=5", "--scripts=classification,dit"]
    alone, (together,) = reports("kill_anywhere", *kills), reports("two_processes", "--scripts=depth", "--victims=1")
    assert [report["script"] for report in alone] == ["classification", "dit"]
    assert all(report["kills"] == 2 and not report["different"] for report in alone)
    check_alike(together)
    check_sharded(together)
    check_killed_together(together)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("workers", [0, 2])
def test_runs_killed_at_many_moments_end_like_unbroken_ones(workers):
    kills = int(os.environ.get("RELIABILITY_KILLS", "50"))
    found = reports("kill_anywhere", f"--kills={kills}", f"--workers={workers}")
    assert [report["script"] for report in found] == SCRIPTS
    for report in found:
        assert report["kills"] == kills and report["writing a checkpoint"] and not report["different"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_two_processes_either_is_killed_in_every_script():
    found = reports("two_processes")
    assert [report["script"] for report in found] == SCRIPTS
    for report in found:
        check_alike(report)
        check_sharded(report)
        check_killed_together(report)
