"""Benchmarks of several tasks: a real sweep of each in a tiny size, and its table."""

import json

import pytest
from tiny_benchmarks import write_fgvc, write_vtab

from onelora_vision.cli import main
from onelora_vision.errors import InputError
from onelora_vision.sweep.benchmarks import BENCHMARKS, benchmark_of, sweep_tasks, tasks_in

pytestmark = pytest.mark.usefixtures("fresh_accelerate", "blank_figures")


def command_for(name, root, output, *more, methods="onelora"):
    flags = {"dataset_name": name, "data_dir": root, "methods": methods, "learning_rates": "1e-2", "seeds": "0"}
    flags |= {
        "max_train_steps": 1,
        "train_batch_size": 2,
        "validation_loss_steps": 0,
        "output_dir": output,
        "workers": 2,
    }
    return ["sweep", "classification", *(f"--{flag}={value}" for flag, value in flags.items()), *more]


def run(command, capsys):
    """The exit code, what was printed, and what was complained about."""
    with pytest.raises(SystemExit) as ended:
        main(command)
    return ended.value.code, *capsys.readouterr()


def rows_in(folder):
    lines = [line.strip("| ") for line in (folder / "table.md").read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith("-")]


def test_vtab_has_the_means_of_its_groups_and_trains_on_its_validation_split_in_the_end(tmp_path, capsys):
    output = tmp_path / "out"
    command = command_for("vtab", write_vtab(tmp_path / "vtab"), output, methods="onelora,head")
    code, printed, complaint = run(command, capsys)
    assert code == 0, complaint
    assert (output / "table.md").read_text() in printed
    heads, *rows = rows_in(output)
    assert heads == ["method", "dtd", "kitti", "natural", "specialized", "structured", "mean of groups"]
    for row in rows:
        natural, structured = float(row[1]), float(row[2])
        assert float(row[3]) == natural and row[4] == "" and float(row[5]) == structured
        assert float(row[6]) == pytest.approx((natural + structured) / 2, abs=0.11)
    (final,) = (output / "dtd" / "runs" / "onelora").glob("*/test-seed-0/config.yaml")
    assert "train_on_validation: true" in final.read_text()


@pytest.mark.slow
def test_fgvc_has_the_mean_of_its_data_sets_and_trains_on_its_training_split_alone(tmp_path, capsys):
    root, output = write_fgvc(tmp_path / "data", ("CUB_200_2011", "Stanford-cars")), tmp_path / "out"
    code, planned, _ = run(command_for("fgvc", root, output, "--dry_run"), capsys)
    assert code == 0 and "StanfordCars/onelora/lr-0.01/validation-seed-0" in planned.splitlines()
    retention = ("--retention", "--retention_samples=36")
    code, printed, complaint = run(command_for("fgvc", root, output, *retention, "--json"), capsys)
    assert code == 0, complaint
    found = json.loads(printed)["rows"]
    assert list(found) == ["CUB_200_2011", "StanfordCars"]
    heads, *rows = rows_in(output)
    assert heads == ["method", "CUB_200_2011", "StanfordCars", "mean", "retention_top1"] and len(rows) == 1
    for row in rows:
        assert float(row[3]) == pytest.approx((float(row[1]) + float(row[2])) / 2, abs=0.11)
        kept = [found[task][0]["more"]["retention_top1"][0] for task in found]
        assert float(row[4]) == pytest.approx(100 * sum(kept) / 2, abs=0.06)
    assert "2 of 5 tasks" in (output / "table.md").read_text()
    (final,) = (output / "StanfordCars" / "runs" / "onelora").glob("*/test-seed-0/config.yaml")
    assert "train_on_validation: false" in final.read_text()


def test_a_data_set_belongs_to_its_benchmark():
    assert benchmark_of("vtab/dtd") is benchmark_of("vtab") is BENCHMARKS["vtab"]
    assert benchmark_of("fgvc/NABirds") is BENCHMARKS["fgvc"]
    assert benchmark_of("imagefolder") is None and benchmark_of(None) is None


@pytest.mark.parametrize(("name", "title"), [("vtab", "VTAB-1k"), ("fgvc", "FGVC")])
def test_a_folder_without_tasks_is_refused(tmp_path, name, title):
    with pytest.raises(InputError, match=f"no folder of a task of {title} with train"):
        tasks_in(BENCHMARKS[name], tmp_path)


def test_a_benchmark_needs_its_folder(tmp_path, capsys):
    command = [word for word in command_for("fgvc", "", tmp_path / "out") if not word.startswith("--data_dir")]
    code, _, complaint = run(command, capsys)
    assert code == 2 and complaint == "error: --dataset_name fgvc needs --data_dir: the folder that the tasks are in\n"


def test_a_table_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(InputError, match="is not empty and not a sweep's"):
        sweep_tasks("vtab", {}, tmp_path, lambda sweep: None)
    assert (tmp_path / "table.md").read_text() == "mine"
