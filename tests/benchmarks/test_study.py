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
    sweep = study.sweep_of("classification", runs)
    sweep.open()
    while missing := sweep.missing():  # as if each run's best rate were 3e-3
        for run in missing:
            top1 = 0.9 - abs(math.log(run.rate / 3e-3)) / 100 + run.seed / 100
            results = {
                **{
                    "task": "classification",
                    "method": run.arm.method,
                    "seed": run.seed,
                    "phase": "complete",
                    "steps": 5,
                },
                **{
                    "trainable_parameters": 6154,
                    "adapter_parameters": 5184,
                    "protocol": "made up",
                    "seconds_total": 1.0,
                },
                "metrics": {"before": {"top1": 0.1}, "after": {"top1": top1, "nll": 1.0, "ece": 0.1}},
                **{"seconds_per_step": 0.1, "peak_memory_bytes": 10**6, "versions": {"onelora_vision": "0"}},
                "config": {"output_dir": str(tmp_path), "seed": run.seed},
            }
            sweep.place(run).mkdir(parents=True)
            (sweep.place(run) / "results.json").write_text(json.dumps(results))
    study.main.__wrapped__(["report", "--folder", str(runs), "--kept", str(kept), "--docs", str(docs)])
    text = (docs / study.TABLES).read_text()
    assert text == study.tables(kept) and "| onelora | 0.003 | 5,184 | 0.9 | 0.91 ± 0.01 | 1 ± 0 | " in text
    assert "## classification, " in text and "**Methods**" in text and "## depth" not in text and "missing" not in text
    assert {path.name for path in kept.rglob("*") if path.is_file()} == {"results.json", "sweep.json"}
    assert not any(str(tmp_path) in path.read_text() for path in kept.rglob("*.json"))
    study.take_up("classification", tmp_path / "anew", kept)
    assert not study.sweep_of("classification", tmp_path / "anew").missing()


def test_no_such_job():
    with pytest.raises(InputError, match="--jobs depht: no such job; did you mean 'depth'"):
        study.main.__wrapped__(["run", "--jobs", "depht"])
