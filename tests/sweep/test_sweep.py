"""A sweep's plan, its runs in processes, and what is left of it when it is killed."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onelora_vision.errors import InputError, TrainingError
from onelora_vision.sweep import runner
from onelora_vision.sweep.plan import FIRST_RATES, Run, Sweep
from onelora_vision.sweep.report import write_report

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def fake_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(runner, "SCRIPTS", "fake_scripts")


def sweep_in(folder, methods=("onelora", "lora", "full"), seeds=(0, 1), rates=None, flags=()):
    sweep = Sweep(folder, "classification", methods, seeds, rates, None, flags)
    sweep.open()
    return sweep


def test_each_methods_rates_are_widened_until_the_best_lies_inside(tmp_path):
    sweep = sweep_in(tmp_path)
    assert sweep.rates_of("onelora") == [1e-3, 3e-3, 1e-2]
    runner.run_all(sweep, workers=2)
    assert sweep.rates_of("onelora") == [1e-3, 3e-3, 1e-2] and sweep.best_trial("onelora").rate == 3e-3
    assert sweep.rates_of("lora") == [3e-3, 1e-2, 3e-2, 1e-1, 3e-1] and sweep.best_trial("lora").rate == 1e-1
    assert sweep.rates_of("full") == [3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]
    assert all(sweep.is_inside(method) for method in sweep.methods) and not sweep.missing()
    rows = write_report(sweep)
    assert {row["method"] for row in rows} == set(sweep.methods)
    for row in rows:
        assert row["validation"] == pytest.approx(0.9) and row["test_mean"] == pytest.approx(0.805)
        assert row["test_std"] == pytest.approx(0.01 / 2**0.5) and row["seeds"] == 2
    table = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["method"] for row in table] == [row["method"] for row in rows]
    page = (tmp_path / "index.html").read_text()
    assert "3 methods on classification" in page and page.count("data:image/png") == 3
    assert "| onelora | 0.003 | 100 | 0.9 | 0.805 ± 0.0071 | 2 | 0.1 | 1 |" in (tmp_path / "table.md").read_text()


def test_what_is_left_of_the_old_data_is_a_column_if_it_is_measured(tmp_path, capsys):
    sweep = sweep_in(tmp_path, ["lora"], rates=[1e-1], flags=["--retention=true"])
    runner.run_all(sweep, workers=1)
    (row,) = write_report(sweep)
    assert row["more"] == {"retention_top1": (pytest.approx(0.55), pytest.approx(0.1 / 2**0.5))}
    table = (tmp_path / "table.md").read_text()
    assert "| test top1 ↑ | retention_top1 ↑ | seeds |" in table and "| 0.55 ± 0.071 | 2 |" in table
    assert "Before training, retention_top1 is 0.9." in table
    (line,) = csv.DictReader((tmp_path / "table.csv").read_text().splitlines())
    assert float(line["retention_top1_mean"]) == pytest.approx(0.55)
    assert '<th class="number">retention_top1 ↑</th>' in (tmp_path / "index.html").read_text()
    plain = sweep_in(tmp_path / "plain", ["lora"], rates=[1e-1])
    runner.run_all(plain, workers=1)
    write_report(plain)
    assert "retention" not in (tmp_path / "plain" / "table.md").read_text()
    assert "retention" not in (tmp_path / "plain" / "table.csv").read_text()


def test_given_rates_are_kept_and_an_edge_is_named(tmp_path):
    sweep = sweep_in(tmp_path, ["lora"], rates=[3e-2, 1e-2])
    runner.run_all(sweep, workers=1)
    assert sweep.rates_of("lora") == [1e-2, 3e-2] and not sweep.is_inside("lora")
    write_report(sweep)
    assert "0.03 (edge)" in (tmp_path / "table.md").read_text()


def test_numbers_gone_wrong_are_a_result(tmp_path):
    sweep = sweep_in(tmp_path, ["lora"], seeds=[0], rates=[1e-1, 1.0])
    runner.run_all(sweep, workers=1)
    failed = Run(sweep.arms["lora"], 1.0, 0, "validation")
    assert "learning rate 1" in sweep.result(failed)["failed"] and sweep.figure(failed) is None
    assert sweep.best_trial("lora").rate == 1e-1 and not sweep.missing()
    write_report(sweep)
    assert "1 runs gave no numbers" in (tmp_path / "table.md").read_text()


def test_where_all_numbers_went_wrong_lower_rates_are_tried(tmp_path, monkeypatch):
    monkeypatch.setitem(FIRST_RATES, "lora", 10.0)
    sweep = sweep_in(tmp_path, ["lora"], seeds=[0])
    runner.run_all(sweep, workers=2)
    assert sweep.best_trial("lora").rate == 1e-1 and sweep.is_inside("lora")


def test_more_methods_and_seeds_use_what_is_done(tmp_path):
    runner.run_all(sweep_in(tmp_path, ["onelora"], seeds=[0]), workers=1)
    more = sweep_in(tmp_path, ["onelora", "lora"], seeds=[0, 1])
    assert len([run for run in more.missing() if run.arm.method == "onelora"]) == 1
    runner.run_all(more, workers=2)
    assert {(file.parent.name, file.read_text()) for file in tmp_path.rglob("starts")} >= {("validation-seed-0", "x")}
    assert all(file.read_text() == "x" for file in tmp_path.rglob("starts"))  # nothing was done twice


def test_tables_keep_what_earlier_commands_gave(tmp_path):
    runner.run_all(sweep_in(tmp_path, ["onelora"], seeds=[0, 1]), workers=2)
    later = sweep_in(tmp_path, ["lora", "lora:rank=4@onelora"], seeds=[2], rates=[1e-1])
    assert later.methods == ["onelora", "lora", "lora:rank=4@onelora"] and later.seeds == [0, 1, 2]
    assert {run.arm.name for run in later.missing()} == {"lora", "lora:rank=4@onelora"}
    runner.run_all(later, workers=2)
    rows = {row["method"]: row for row in write_report(later)}
    assert (rows["onelora"]["seeds"], rows["lora"]["seeds"], rows["lora:rank=4@onelora"]["seeds"]) == (2, 3, 3)


def test_rates_that_were_tried_count_whatever_is_asked_for_now(tmp_path):
    runner.run_all(sweep_in(tmp_path, ["onelora"], seeds=[0], rates=[3e-3]), workers=1)
    more = sweep_in(tmp_path, ["onelora"], seeds=[0], rates=[1e-2])
    assert more.rates_of("onelora") == [3e-3, 1e-2] and len(more.missing()) == 1
    runner.run_all(more, workers=1)
    assert more.best_trial("onelora").rate == 3e-3


def test_an_arm_has_flags_of_its_own_and_may_take_anothers_rate(tmp_path):
    sweep = sweep_in(tmp_path, ["onelora", "lora", "lora:rank=4@onelora"], seeds=[0])
    sweep.sections = {"One": ["onelora", "lora"], "Two": ["lora:rank=4@onelora"]}
    sweep.more_metrics = ["nll"]
    assert not [run for run in sweep.runs() if run.arm.flags]  # nothing to do before the other's rate is known
    runner.run_all(sweep, workers=2)
    (run,) = [run for run in sweep.runs() if run.arm.flags]
    assert (run.rate, run.split) == (3e-3, "test") and "--rank=4" in sweep.arguments(run)
    assert sweep.place(run) == tmp_path / "runs" / "lora,rank=4@onelora" / "lr-0.003" / "test-seed-0"
    row = next(row for row in write_report(sweep) if row["method"] == "lora:rank=4@onelora")
    assert row["validation"] is None and row["inside"] and row["more"] == {"nll": (0.5, None)}
    one, two = (tmp_path / "table.md").read_text().split("**Two**")
    assert "| lora:rank=4@onelora | 0.003 | 100 |  | " in two and "rank" not in one
    assert "x@y: x at the best rate of y" in two
    assert next(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))["nll_mean"] == "0.5"
    sweep.more_metrics = ["nlll"]
    with pytest.raises(InputError, match="--more_metrics nlll: is not measured by these runs; they have top1, nll"):
        write_report(sweep)


def test_what_the_script_refuses_or_a_killed_run_ends_the_sweep_with_its_words(tmp_path):
    with pytest.raises(InputError, match=r"head/lr-0.003/validation-seed-0: --data_dir nowhere: no such folder"):
        runner.run_all(sweep_in(tmp_path / "a", ["head"], rates=[3e-3]), workers=1)
    with pytest.raises(TrainingError, match=r"ended with exit code -9 .*start the sweep again"):
        runner.run_all(sweep_in(tmp_path / "b", ["bitfit"], rates=[3e-3]), workers=1)


def test_other_settings_and_foreign_folders_are_refused(tmp_path):
    sweep_in(tmp_path / "a", ["onelora"])
    with pytest.raises(InputError, match=r"a: the sweep there has other flags \(none; now --few_shot=5\)"):
        sweep_in(tmp_path / "a", ["onelora"], flags=["--few_shot=5"])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and not a sweep's"):
        sweep_in(tmp_path / "b")
    for options, message in (
        ({"methods": ["lora", "lora"]}, "a method is given twice"),
        ({"methods": ["lorra"]}, "did you mean 'lora'"),
        ({"rates": [0.1, -1]}, "greater than 0"),
        ({"seeds": [-1]}, "seeds must be"),
        ({"methods": []}, "no method is given"),
    ):
        with pytest.raises(InputError, match=message):
            sweep_in(tmp_path / "c", **options)


KILLED = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from onelora_vision.sweep import runner
from onelora_vision.sweep.plan import Sweep
runner.SCRIPTS = "fake_scripts"
sweep = Sweep(Path({folder!r}), "classification", ["onelora", "lora"], [0, 1], None, None, ["--slow=0.2"])
sweep.open()
runner.run_all(sweep, workers=2)
"""


MOMENTS = [
    (signal.SIGKILL, (3,)),
    pytest.param(signal.SIGTERM, (1, 5), marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, tuple(range(10)), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("number", "moments"), MOMENTS)
def test_a_kill_changes_nothing_in_the_tables(tmp_path, number, moments):
    whole = sweep_in(tmp_path / "whole", ["onelora", "lora"], flags=["--slow=0.0"])
    runner.run_all(whole, workers=2)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED.format(here=str(HERE), folder=str(folder))]
    for most in moments:
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(folder.rglob("results.json"))) < most:
            pass
        if process.poll() is None:
            os.killpg(process.pid, number)
        process.wait()
    again = Sweep(folder, "classification", ["onelora", "lora"], [0, 1], None, None, ["--slow=0.2"])
    runner.run_all(again, workers=2)
    assert write_report(again) == write_report(whole)


def test_jobs_of_an_engine(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1])]))
    sweep, said = sweep_in(tmp_path, ["onelora"], seeds=[0]), []
    monkeypatch.setattr(runner, "_train_in_job", _in_job)
    runner.run_with_submitit(sweep, {"timeout_min": 5}, "local", said.append)
    assert not sweep.missing() and said == [
        "3 jobs submitted with submitit (local)",
        "1 jobs submitted with submitit (local)",
    ]
    with pytest.raises(InputError, match="--engine_options"):
        runner.run_with_submitit(sweep_in(tmp_path / "b"), {"no_such": 5}, "local", said.append)


def _in_job(sweep, run):
    from onelora_vision.sweep import runner

    runner.SCRIPTS = "fake_scripts"
    return _original(sweep, run)


_original = runner._train_in_job


def test_the_layout_of_peft(tmp_path):
    from onelora_vision.sweep.peft_layout import write_layout

    sweep = sweep_in(tmp_path, ["onelora"], seeds=[0])
    runner.run_all(sweep, workers=1)
    (final,) = sweep.finals("onelora")
    adapter = sweep.place(final) / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "ONELORA"}')
    (adapter / "adapter_model.safetensors").write_bytes(b"x" * 7)
    write_layout(sweep)
    (config,) = (tmp_path / "experiments").rglob("adapter_config.json")
    assert config.parent.parent.name == "onelora"
    (file,) = (tmp_path / "results").iterdir()
    report = json.loads(file.read_text())
    assert file.name.startswith("onelora--") and set(report) == {"run_info", "train_info", "meta_info"}
    assert report["train_info"]["file_size"] == 7 and report["train_info"]["metrics"][0]["top1"] == pytest.approx(0.8)
