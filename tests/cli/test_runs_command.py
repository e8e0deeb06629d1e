import json
import re

import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Three runs, one of them not finished, and two files that are no runs'."""
    for number, (name, task, metrics) in enumerate(
        [
            ("first", "classification", {"top1": 0.5, "ece": 0.1}),
            ("deep/second", "classification", {"top1": 0.75, "ece": 0.2}),
            ("third", "depth", {}),
        ]
    ):
        place = tmp_path / "runs" / name
        place.mkdir(parents=True)
        results = {
            "task": task,
            "method": "onelora",
            "seed": number,
            "phase": "complete" if metrics else "baseline",
            "protocol": f"10 images seed={number}",
            "trainable_parameters": 1234,
            "seconds_total": 100.0 * number,
            "metrics": {"before": {"top1": 0.25, "ece": 0.15} if metrics else {"abs_rel": 0.5}, "after": metrics},
            "versions": {"onelora_vision": "0.1.0"},
        }
        (place / "results.json").write_text(json.dumps(results))
    Image.new("RGB", (400, 200)).save(tmp_path / "runs" / "deep" / "second" / "samples.png")
    (tmp_path / "runs" / "deep" / "second" / "report.html").write_text("a report")
    for name, text in {"bad": "{", "foreign": '{"accuracy": 1}'}.items():
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "results.json").write_text(text)
    return tmp_path / "runs"


def test_the_table_has_the_best_first_and_each_unfinished_run_s_phase(onelora, folder):
    code, printed, errors = onelora("runs", folder)
    lines = printed.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == ["run", "deep/second", "first", "third"]
    assert re.split(r"\s{2,}", lines[1]) == [
        "deep/second", "classification", "onelora", "1,234", "top1 ↑", "0.25", "0.75", "2 min", "1", "complete",
    ]  # fmt: skip
    assert re.split(r"\s{2,}", lines[3])[-5:] == ["abs_rel ↓", "0.5", "3 min", "2", "baseline"]
    assert [line.partition(": ")[0] for line in errors.splitlines()] == ["warning", "warning"]
    assert "bad/results.json" in errors and "foreign/results.json" in errors


def test_runs_are_filtered_sorted_and_given_as_json(onelora, folder):
    _, result, _ = onelora("runs", folder, "--sort", "ece", "--task", "classification", "--json")
    assert [(run["path"], run["after"]) for run in result["runs"]] == [("first", 0.1), ("deep/second", 0.2)]
    assert result["runs"][1]["report"] == str(folder / "deep" / "second" / "report.html")
    code, _, error = onelora("runs", folder, "--sort", "ecce")
    assert code == 2 and "did you mean 'ece'" in error
    assert onelora("runs", folder / "no")[0] == 2 and onelora("runs", folder, "--task", "x")[0] == 2
    assert "no runs" in onelora("runs", folder / "first" / "..", "--task", "generation")[1]


def test_a_column_says_what_is_left_of_the_old_data_where_a_run_measured_it(onelora, folder, tmp_path):
    assert "retention" not in onelora("runs", folder)[1]
    file = folder / "first" / "results.json"
    results = json.loads(file.read_text())
    for when, value in (("before", 0.9), ("after", 0.6)):
        results["metrics"][when]["retention_top1"] = value
    file.write_text(json.dumps(results))
    lines = [re.split(r"\s{2,}", line) for line in onelora("runs", folder)[1].splitlines()]
    assert "retention" in lines[0] and "top1 ↑ 0.9 → 0.6" in lines[2]
    _, found, _ = onelora("runs", folder, "--sort", "retention_top1", "--json")
    assert found["runs"][0]["path"] == "first" and found["runs"][0]["after"] == 0.6
    assert onelora("runs", folder, "--html", tmp_path / "runs.html")[0] == 0
    assert 'class="number bad" data-value="0.6">top1 ↑ 0.9 → 0.6<' in (tmp_path / "runs.html").read_text()


def test_metrics_of_unlike_protocols_are_pointed_out(onelora, folder):
    assert "Not all metrics are comparable" not in onelora("runs", folder)[1]
    file = folder / "first" / "results.json"
    file.write_text(file.read_text().replace("10 images", "20 images"))
    assert "Not all metrics are comparable: 2 protocols of classification" in onelora("runs", folder)[1]


def test_the_page_links_the_reports_from_where_it_is(onelora, folder, tmp_path):
    page = tmp_path / "pages" / "runs.html"
    assert onelora("runs", folder, "--html", page)[0] == 0
    text = page.read_text()
    assert 'href="../runs/deep/second/report.html"' in text and text.count("<img ") == 1
    assert text.index("deep/second") < text.index(">first<") and 'class="unfinished"' in text
    assert not re.findall(r'src="(?!data:)', text)
    code, _, error = onelora("runs", folder, "--html", page)
    assert code == 2 and "exists already: set --overwrite" in error
    assert onelora("runs", folder, "--html", page, "--overwrite")[0] == 0
    (tmp_path / "mine.html").write_text("mine")
    assert onelora("runs", folder, "--html", tmp_path / "mine.html", "--overwrite")[0] == 2
    assert (tmp_path / "mine.html").read_text() == "mine"
    assert onelora("runs", folder, "--html", tmp_path / "runs.txt")[0] == 2
