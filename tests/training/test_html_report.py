import re

import pytest
from PIL import Image
from tiny_run import TinyConfig

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.training.html_report import render_report

HOSTILE = '<img src=x onerror="alert(1)">'


def results(**changes):
    return {
        "task": "classification",
        "method": "lora",
        "seed": 3,
        "metrics": {
            "before": {"top1": 0.5, "ece": 0.1, "fd_x_floor": 1.0, "nll": None},
            "after": {"top1": 0.75, "ece": 0.2, "fd_x_floor": 1.0, "nll": 2.0},
        },
        "best": None,
        "protocol": HOSTILE,
        "validation_loss": {"first": 2.0, "last": 1.0},
        "steps": 6,
        "skipped_steps": 1,
        "seconds_total": 7000.0,
        "seconds_per_step": 0.25,
        "peak_memory_bytes": 2**30,
        "trainable_parameters": 1234,
        "adapter_parameters": 1000,
        "published": None,
        "versions": {"torch": "2.0"},
    } | changes


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "loss.png")
    (tmp_path / "samples.png").write_bytes(b"damaged")
    return tmp_path


def page_of(folder, **changes):
    info = AdapterInfo("classification", "lora", HOSTILE, class_names=[HOSTILE])
    return render_report(results(**changes), folder, info, TinyConfig(output_dir=str(folder), rank=2))


def cells(page, name):
    """The texts of the row of a table that begins with ``name``."""
    (row,) = re.findall(rf"<tr><t[hd][^>]*>{name}\b.*?</tr>", page, re.DOTALL)
    return [re.sub("<[^>]*>", "", cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]


def test_metrics_have_their_direction_and_whether_they_are_better(folder):
    page = page_of(folder)
    assert cells(page, "top1") == ["top1 ↑", "0.5", "0.75", "+0.25 (+50.0%)"]
    assert cells(page, "nll") == ["nll ↓", "none", "2", ""]
    verdicts = re.findall(r'class="number (good|bad|)">([^<]*)<', page)
    assert verdicts == [("good", "+0.25 (+50.0%)"), ("bad", "+0.1 (+100.0%)"), ("", "")]
    rare = {"before": {"top1": 0.001, "x": 0.0}, "after": {"top1": 0.5, "x": 1.0}}
    assert cells(page_of(folder, metrics=rare), "top1")[3] == "+0.499"  # a rise by 49,900 % says nothing
    best = page_of(folder, best={"step": 4, "metrics": {"top1": 0.8}})
    assert "best (step 4)" in best and cells(best, "top1")[3] == "0.8"


def test_what_is_left_of_the_old_data_is_shown_with_how_it_was_measured(folder):
    metrics = {"before": {"top1": 0.5, "retention_top1": 0.9}, "after": {"top1": 0.7, "retention_top1": 0.6}}
    page = page_of(folder, metrics=metrics, retention="100 images of <old>")
    assert cells(page, "retention_top1") == ["retention_top1 ↑", "0.9", "0.6", "-0.3 (-33.3%)"]
    assert "retention_*: 100 images of &lt;old&gt;" in page
    assert re.search(r"retention_top1 ↑</div><div class=.value.>0.9 → 0.6", page)
    assert "retention" not in page_of(folder).partition("<h2>Settings")[0]


def test_settings_numbers_and_how_to_load_are_there(folder):
    page = page_of(folder)
    changed = page.partition("Different from the defaults")[2].partition("All settings")[0]
    assert cells(changed, "rank") == ["2"] and "max_train_steps" not in changed and "max_train_steps" in page
    assert "1,234" in page and "117 min" not in page and "1 h 57 min" in page and "1,024 MiB" in page
    assert cells(page, "validation loss") == ["2 → 1"] and cells(page, "steps") == ["6, 1 skipped"]
    assert f"load_adapted(&#34;{folder}/adapter&#34;)" in page


def test_the_page_needs_nothing_else_and_names_are_text(folder):
    page = page_of(folder)
    assert HOSTILE not in page and "&lt;img src=x" in page
    assert page.count("<img ") == 1 == page.count("data:image/png;base64,")  # the damaged picture is left out
    assert (
        not re.findall(r'(?:src|href)="(?!data:)', page)
        and "<script" not in page
        and "http" not in page.replace("http-equiv", "")
    )


def test_a_run_without_metrics_has_a_report(folder):
    page = page_of(folder, metrics={"before": {}, "after": {}}, validation_loss=None, seconds_per_step=None)
    assert "<h2>Metrics" not in page and "<h2>Settings" in page and "validation loss" not in page
