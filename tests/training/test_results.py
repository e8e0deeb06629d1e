"""Runs are found in any folder, and what is not a run's is named and skipped."""

import json
import os

import pytest

from onelora_vision.errors import InputError
from onelora_vision.training.results import PHASES, checked_run, duration, find_runs, sorted_runs, verdict


def results(**changes):
    return {
        "task": "classification",
        "method": "onelora",
        "seed": 0,
        "phase": "complete",
        "protocol": "10 images",
        "trainable_parameters": 12,
        "seconds_total": 3,
        "steps": 5,
        "metrics": {"before": {"top1": 0.5}, "after": {"top1": 0.75}},
        "versions": {"onelora_vision": "0.1.0"},
    } | changes


def write(folder, content=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    text = content if content is not None else json.dumps(results(**changes))
    (folder / "results.json").write_text(text)


def found(folder):
    return sorted(str(place.relative_to(folder)) for place, _ in find_runs(folder))


def test_runs_are_found_at_any_depth_but_not_inside_a_run_or_behind_links(tmp_path, caplog):
    write(tmp_path)
    for name in ("a", "b/c/d", "b/c", "seeds/seed-1"):
        write(tmp_path / name)
    for name in ("a/adapter", "a/checkpoint-5", "a/logs/x", ".hidden", "b/.git"):
        write(tmp_path / name)
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    (tmp_path / "linked").mkdir()
    os.symlink(tmp_path / "a" / "results.json", tmp_path / "linked" / "results.json")
    write(tmp_path / "seeds", json.dumps({"seeds": [1], "runs": [results()], "metrics": {}}))
    assert found(tmp_path) == [".", "a", "b/c", "b/c/d", "seeds/seed-1"]
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        f"{tmp_path}/linked/results.json: not the results of a run (it is not a plain file)"
    ]


BAD = {
    "no JSON": "{",
    "deep": "[" * 100_000,
    "a list": "[]",
    "foreign": json.dumps({"accuracy": 0.5}),
    "no versions": json.dumps(results(versions=None)),
    "of others": json.dumps(results(versions={"torch": "2"})),
    "bad seed": json.dumps(results(seed="\x1b[31m")),
    "bad task": json.dumps(results(task=None)),
    "bad metrics": json.dumps(results(metrics={"before": {}})),
    "bad phase": json.dumps(results(phase="x\n" * 1000)),
    "bad bytes": "\udcff",
}


@pytest.mark.parametrize("name", BAD)
def test_a_foreign_or_bad_file_is_one_warning(tmp_path, caplog, name):
    write(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_bytes(BAD[name].encode(errors="surrogateescape"))
    assert found(tmp_path) == ["good"]
    (record,) = caplog.records
    message = record.getMessage()
    assert "bad/results.json" in message and message.isprintable() and len(message) < 400


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_in_any_phase_is_a_run(phase):
    run = checked_run(results(phase=phase, metrics={"before": {"top1": None, "x": "y"}, "after": {}}))
    assert run["phase"] == phase and run["metrics"] == {"before": {"top1": None, "x": None}, "after": {}}


def runs(*rows):
    return [
        {"path": path, **checked_run(results(task=task, metrics={"before": {}, "after": after}))}
        for path, task, after in rows
    ]


def test_the_best_come_first_within_their_task_and_runs_without_a_result_last():
    rows = sorted_runs(
        runs(
            ("a", "depth", {"abs_rel": 0.3}),
            ("b", "classification", {"top1": 0.5}),
            ("c", "depth", {}),
            ("d", "classification", {"top1": 0.9}),
            ("e", "depth", {"abs_rel": 0.1}),
        )
    )
    assert [row["path"] for row in rows] == ["d", "b", "e", "a", "c"]
    assert [row["metric"] for row in rows] == ["top1", "top1", "abs_rel", "abs_rel", None]


def test_a_chosen_metric_sorts_all_runs_and_one_that_none_has_is_refused():
    table = runs(("a", "depth", {"rmse": 3.0}), ("b", "x", {"rmse": 1.0, "top1": 0.1}), ("c", "x", {"top1": 0.2}))
    assert [row["path"] for row in sorted_runs(table, "rmse")] == ["b", "a", "c"]
    assert [row["path"] for row in sorted_runs(table, "top1")] == ["c", "b", "a"]
    with pytest.raises(InputError, match="no run has the metric 'rsme'; did you mean 'rmse'"):
        sorted_runs(table, "rsme")
    assert sorted_runs([], "rmse") == []


def test_what_is_left_of_the_old_data_stands_next_to_the_metric():
    (row,) = sorted_runs(runs(("a", "depth", {"abs_rel": 0.3, "retention_abs_rel": 0.2})))
    assert row["metric"] == "abs_rel" and row["retention"] == ("retention_abs_rel", None, 0.2)
    assert sorted_runs(runs(("a", "depth", {"abs_rel": 0.3})))[0]["retention"] is None


def test_verdicts_and_durations():
    assert verdict("top1", 0.1, 0.2) == "good" == verdict("nll", 0.2, 0.1) and verdict("nll", 0.1, 0.2) == "bad"
    assert verdict("fd_x_floor", 1, 2) == verdict("top1", 1, 1) == verdict("top1", None, 1) == ""
    assert [duration(s) for s in (42.4, 600, 7000, 360_000)] == ["42 s", "10 min", "1 h 57 min", "100 h 00 min"]
