"""The study is three sweeps, whose settings are files, and a page made from what their runs have measured."""

import json
import math

import pytest

from benchmarks.study import __main__ as study
from onelora_vision.errors import InputError


def test_the_settings_are_those_of_sweeps():
    for job in study.JOBS:
        sweep = study.sweep_of(job, study.KEPT)
        assert {"onelora", "lora", "full"} <= set(sweep.arms) and len(sweep.sections) > 2 and sweep.seeds == [0, 1, 2]


def test_the_tables_are_made_of_what_is_kept_of_the_runs(tmp_path):
    docs, kept, runs = tmp_path / "docs", tmp_path / "kept", tmp_path / "runs"
    (docs / "images").mkdir(parents=True)
    few = ["--methods", "onelora", "--seeds", "0", "--learning_rates", "1e-5", "--max_train_steps", "1"]
    study.main.__wrapped__(["run", "--jobs", "classification", "--folder", str(runs), *few])
    results = json.loads(next(runs.rglob("results.json")).read_text())
    sweep = study.sweep_of("classification", runs)
    while missing := sweep.missing():  # as if each run's best rate were 3e-3
        for run in missing:
            results["metrics"]["after"]["top1"] = 0.9 - abs(math.log(run.rate / 3e-3)) / 100 + run.seed / 100
            sweep.place(run).mkdir(parents=True)
            (sweep.place(run) / "results.json").write_text(json.dumps(results))
    study.main.__wrapped__(["report", "--folder", str(runs), "--kept", str(kept), "--docs", str(docs)])
    text = (docs / study.TABLES).read_text()
    assert text == study.tables(kept) and "| onelora | 0.003 | 5,184 | 0.9 | 0.91 ± 0.01 | " in text
    assert "## classification, " in text and "**Methods**" in text and "## depth" not in text and "missing" not in text
    assert {path.name for path in kept.rglob("*") if path.is_file()} == {"results.json"}
    assert not any(str(tmp_path) in path.read_text() for path in kept.rglob("results.json"))


def test_no_such_job():
    with pytest.raises(InputError, match="--jobs depht: no such job; did you mean 'depth'"):
        study.main.__wrapped__(["run", "--jobs", "depht"])
