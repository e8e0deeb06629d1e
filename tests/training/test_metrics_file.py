"""Metrics as lines of JSON: what is logged, and that a resumed run continues the same curve."""

import json

import pytest

from onelora_vision.errors import WriteError
from onelora_vision.training.config import TrainingConfig
from onelora_vision.training.metrics_file import METRICS_FILE, MetricsFile
from onelora_vision.training.setup import start_run
from onelora_vision.training.trackers import log_metrics, open_trackers


def rows(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def test_a_run_logs_and_a_resumed_one_drops_what_came_after_its_checkpoint(tmp_path):
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with start_run(TrainingConfig(output_dir=str(tmp_path / "out"), report_to="jsonl", overwrite=True)) as run:
            open_trackers(run.accelerator, start)
            for step in steps:
                log_metrics(run.accelerator, "train", {"loss": step + start / 10}, step)
    found = rows(tmp_path / "out" / "logs")
    assert [(row["step"], row["train/loss"]) for row in found] == [(1, 1), (2, 2), (3, 3.2), (4, 4.2)]
    assert [row["time"] for row in found] == sorted(row["time"] for row in found)


def test_a_line_that_was_cut_off_is_dropped(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "time": 0}\n{"step": 2, "ti')
    tracker = MetricsFile(tmp_path)
    tracker.rewind(5)
    tracker.log({"train/loss": 1.0}, step=2)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "logs").write_text("a file")
    with (
        pytest.raises(WriteError, match="logs"),
        start_run(TrainingConfig(output_dir=str(tmp_path / "out"), report_to="jsonl")) as run,
    ):
        open_trackers(run.accelerator, 0)
