import json
from dataclasses import replace

import pytest

from benchmarks import cells as study_cells
from benchmarks import study
from benchmarks.cells import (
    ATTENTION,
    COMPRESSIONS,
    FEW_SHOT_METHODS,
    JOBS,
    METHODS,
    RATES,
    Cell,
    best_rate,
    load_study,
    methods_of,
    rates_of,
    wanted_cells,
)
from benchmarks.study_report import few_shot_table, good_rates, method_table, rate_table, spread, write_report
from onelora_vision.methods.apply import apply_method
from onelora_vision.storage.files import write_json
from train_scripts import train_classification
from train_scripts.train_classification import ClassificationConfig
from train_scripts.train_depth import DepthConfig
from train_scripts.train_dit import DiTConfig

CONFIGS = {"classification": ClassificationConfig, "depth": DepthConfig, "generation": DiTConfig}


def result_of(cell: Cell, value: float) -> dict:
    """What a run would leave, with the job's figure at ``value``."""
    figures = dict.fromkeys(
        ("top1", "nll", "ece", "abs_rel", "rmse", "delta1", "fd_embedded", "class_accuracy"), value
    )
    return {
        "method": cell.method,
        "metrics": {"before": dict.fromkeys(figures, 0.5), "after": figures},
        "trainable_parameters": 1000,
        "adapter_parameters": 900,
        "seconds_per_step": 0.1,
        "peak_memory_bytes": 10**9,
        "config": {"learning_rate": cell.learning_rate},
    }


def finish(folder, jobs, value_of) -> dict:
    """Write the results of all cells, stage by stage, until none is missing."""
    while True:
        cells, results = load_study(folder, jobs)
        missing = [cell for cell in cells if cell not in results]
        if not missing:
            return results
        for cell in missing:
            write_json(folder / cell.path / "results.json", value_of(cell))


@pytest.mark.parametrize("job", JOBS)
def test_cells_are_flags_that_the_script_takes(job):
    for method, rate in (("onelora", 1e-2), ("sum+norms", 1e-3), ("head", 3e-4)):
        for split in ("validation", "test"):
            compression = COMPRESSIONS["random"] if method != "head" else ()
            flags = Cell(job, method, rate, 1, split, compression).flags()
            config = CONFIGS[job](**flags)
            assert Cell(job, method, rate, 1, split, ATTENTION).flags()["target_modules"] == "att"
            assert (config.method, config.learning_rate, config.seed) == (method, rate, 1)
            assert config.compression == ("sum" if method == "head" else "random")
            judged_by = config.fid_split if job == "generation" else config.eval_split
            assert (judged_by == "validation") == (split == "validation")
            if method == "head":
                assert config.head_learning_rate == rate


def test_later_stages_wait_for_the_sweep_and_take_its_best_rate(tmp_path):
    first = wanted_cells({}, ["depth"])
    swept = len(METHODS) - 1 + len(COMPRESSIONS)  # no head to train
    assert len(first) == swept * len(RATES) and {cell.split for cell in first} == {"validation"}
    assert not any(cell.method == "head" for cell in first)
    results = finish(tmp_path, ["depth"], lambda cell: result_of(cell, abs(cell.learning_rate - 1e-2)))
    later = [cell for cell in results if cell.split == "test"]
    assert {cell.learning_rate for cell in later} == {
        1e-2
    }  # the middle of the rates, or the end of longer vectors' rates
    # three seeds of each method, of two on the attention, of each compression; and the sets of parts
    assert len(later) == 3 * (len(METHODS) - 1 + 2 + len(COMPRESSIONS)) + 15 - 4
    assert len({cell.path for cell in results}) == len(results)


def test_few_shot_cells_are_those_of_classification_alone(tmp_path):
    results = finish(tmp_path, ["classification"], lambda cell: result_of(cell, 1 - cell.learning_rate))
    few = [cell for cell in results if dict(cell.variant).get("few_shot")]
    assert len(few) == 3 * 3 * len(FEW_SHOT_METHODS) and {cell.learning_rate for cell in few} == {RATES[0]}
    table = few_shot_table(results)
    assert [row[0] for row in table] == ["method", *FEW_SHOT_METHODS]
    assert table[1][1:] == ["99.90 ± 0.00"] * 4


def test_a_run_that_broke_off_is_never_the_best():
    cells = study_cells.sweep_cells("depth", "full")
    results = {cell: result_of(cell, cell.learning_rate) for cell in cells}
    results[cells[0]] = {"failed": "the loss is not a number"}
    assert best_rate(results, "depth", "full") == RATES[1]
    assert best_rate({cell: {"failed": ""} for cell in cells}, "depth", "full") is None
    table = rate_table(results, "depth")
    assert table[1][1] == "–" and table[1][2] == "**0.003**"


def test_good_rates_are_within_a_tenth_of_the_best():
    assert good_rates([0.30, 0.20, 0.21, None, 0.22], "depth") == 3
    assert good_rates([0.90, 0.89, 0.80], "classification") == 2  # errors 0.10, 0.11, 0.20
    assert good_rates([None], "depth") == 0
    assert spread([1.0, 3.0], 10, 1) == "20.0 ± 14.1" and spread([None, 1.0]) == "–" and spread([2.0]) == "2.00"


def test_the_report_has_tables_and_pictures(tmp_path):
    def value_of(cell):
        return result_of(cell, 0.9 - cell.learning_rate + 0.001 * cell.seed)

    results = finish(tmp_path / "study", list(JOBS), value_of)
    rows = method_table(results, "classification")
    assert [row[0] for row in rows[1:3]] == ["base", "head"] and rows[1][4] == "50.00"
    steps = {job: {"step": {method: {"median": 1.1} for method in methods_of(job)}} for job in JOBS}
    write_json(tmp_path / "study" / "times.json", steps)
    write_report(tmp_path / "study", tmp_path / "docs", list(JOBS))
    text = (tmp_path / "docs" / "study-tables.md").read_text()
    pictures = {path.name for path in (tmp_path / "docs" / "images").iterdir()}
    assert len(pictures) == 7 and all(f"images/{name}" in text for name in pictures)
    assert "| sum, --sum_scale rms | 0.01–1 |" in text and "| lora | attention |" in text


def test_longer_and_shorter_vectors_are_swept_around_other_rates():
    assert rates_of(()) == rates_of(COMPRESSIONS["random"]) == RATES
    assert rates_of(COMPRESSIONS["sum / √k"]) == (1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    assert rates_of(COMPRESSIONS["principal component of x"]) == (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


def test_a_variant_trains_with_its_vectors(tmp_path):
    cell = Cell("classification", "onelora", 0.01, 0, "validation", COMPRESSIONS["sum / √k"])
    small = {"max_train_steps": 2, "few_shot": 1, "train_batch_size": 4}
    study.run_cell(cell, tmp_path, small)
    result = json.loads((tmp_path / cell.path / "results.json").read_text())
    assert (result["config"]["scale"], result["config"]["max_train_steps"]) == ("unit", 2)
    assert result["seconds_of_calibration"] > 0
    assert train_classification.apply_method is apply_method  # the script is as it was


def test_times_are_of_all_methods_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setitem(JOBS, "classification", replace(JOBS["classification"], batch=1))
    study.measure_times(tmp_path, ["classification"], seconds=0)
    times = study_cells.load_times(tmp_path)["classification"]
    assert set(times["step"]) == {"frozen", *METHODS} and times["step"]["frozen"]["median"] == 1
    assert times["rounds"] == 3


def test_running_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    """Cells are forks of this process: here with a script that only writes its result."""
    ran = tmp_path / "ran.txt"

    def script(argv):
        flags = dict(flag.removeprefix("--").split("=", 1) for flag in argv)
        with open(ran, "a") as log:
            log.write(f"{flags['method']}\n")
        if flags["method"] == "full":
            print("error: the loss is NaN at step 3: try a lower --learning_rate")
            raise SystemExit(1)
        cell = Cell("depth", flags["method"], float(flags["learning_rate"]), 0, "test")
        write_json(f"{flags['output_dir']}/results.json", result_of(cell, 0.5))
        raise SystemExit(0)

    monkeypatch.setattr("train_scripts.train_depth.main", script)
    monkeypatch.setattr(study_cells, "METHODS", ("head", "full"))
    monkeypatch.setattr(study_cells, "COMPRESSIONS", {"random": COMPRESSIONS["random"]})
    folder = tmp_path / "study"
    cells = wanted_cells({}, ["depth"])
    for cell in cells[:3]:
        write_json(folder / cell.path / "results.json", result_of(cell, 0.4))
    assert study.run(folder, ["depth"], 2, None, {}) == 0
    cells, results = load_study(folder, ["depth"])
    assert set(cells) == set(results)
    assert len(ran.read_text().split()) == len(cells) - 3
    broken = [cell for cell in cells if "failed" in results[cell]]
    assert {cell.method for cell in broken} == {"full"} and len(broken) == len(RATES)
    assert not list(folder.rglob(".running-*"))
    assert study.run(folder, ["depth"], 2, None, {}) == 0 and len(ran.read_text().split()) == len(cells) - 3
    with pytest.raises(SystemExit) as ended:
        study.main(["status", "--folder", str(folder), "--jobs", "depht"])
    assert ended.value.code == 2 and "did you mean 'depth'" in capsys.readouterr().err
    assert json.loads((folder / cells[0].path / "results.json").read_text())["metrics"]["after"]["abs_rel"] == 0.4


def test_the_tables_in_the_docs_are_those_of_the_kept_cells(tmp_path):
    write_report(study_cells.FOLDER, tmp_path, list(JOBS))
    docs = study_cells.FOLDER.parents[2] / "docs"
    for written in tmp_path.rglob("*.md"):
        assert (docs / written.relative_to(tmp_path)).read_text() == written.read_text(), (
            "run: benchmarks.study report"
        )
    assert all((docs / "images" / picture.name).exists() for picture in (tmp_path / "images").iterdir())
