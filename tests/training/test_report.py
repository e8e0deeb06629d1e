from types import SimpleNamespace

import pytest
from PIL import Image
from tiny_run import TinyConfig, tiny_model

from onelora_vision.errors import InputError
from onelora_vision.storage.outputs import Ledger
from onelora_vision.training.report import (
    aggregate_seeds,
    count_parameters,
    plot_loss,
    print_outcome,
    print_plan,
    publish,
)


def results(seed=0, accuracy=0.5, **changes):
    metrics = {"before": {"accuracy": 0.1}, "after": {"accuracy": accuracy}}
    return {
        "task": "classification",
        "method": "lora",
        "seed": seed,
        "protocol": "10 samples",
        "metrics": metrics,
    } | changes


def test_seeds_are_averaged_with_the_sample_deviation():
    runs = [results(seed, accuracy) for seed, accuracy in ((0, 0.5), (1, 0.7), (2, 0.9))]
    summary = aggregate_seeds(runs)
    assert summary["seeds"] == [0, 1, 2]
    assert summary["metrics"]["accuracy"] == {"mean": pytest.approx(0.7), "std": pytest.approx(0.2)}
    assert aggregate_seeds(runs[:1])["metrics"]["accuracy"]["std"] is None


def test_unlike_runs_are_not_averaged():
    with pytest.raises(InputError, match="differ in protocol"):
        aggregate_seeds([results(0), results(1, protocol="20 samples")])
    with pytest.raises(InputError, match="one result per seed"):
        aggregate_seeds([results(0), results(0)])
    with pytest.raises(InputError, match="not finite for seed 1"):
        aggregate_seeds([results(0), results(1, None)])


def test_the_loss_is_drawn(tmp_path):
    plot_loss(tmp_path / "loss.png", {"loss": [1 / (1 + step) for step in range(120)]})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("losses", [[1.0], [1.0, 2.0], [1.0] * 30, [float("nan")] * 30, [1.0, float("inf")] * 20])
def test_any_loss_is_drawn_and_the_validation_loss_below_it(tmp_path, losses):
    plot_loss(tmp_path / "alone.png", {"loss": losses})
    plot_loss(tmp_path / "both.png", {"loss": losses}, [(0, 2.0), (len(losses), float("nan"))])
    heights = [Image.open(tmp_path / f"{name}.png").height for name in ("alone", "both")]
    assert heights[1] > 1.3 * heights[0]


def test_the_plan_counts_epochs_and_bytes(capsys):
    config = TinyConfig(max_train_steps=10, train_batch_size=4, gradient_accumulation_steps=2)
    model = tiny_model(config)
    print_plan(config, model, 40, SimpleNamespace(is_main_process=False, num_processes=2))
    assert not capsys.readouterr().out
    print_plan(config, model, 40, SimpleNamespace(is_main_process=True, num_processes=1))
    printed = capsys.readouterr().out
    assert f"{count_parameters(model)['trainable_parameters']:,} of" in printed
    assert "10, 2.00 epochs" in printed


def test_the_adapter_is_uploaded(tmp_path, monkeypatch, capsys):
    from onelora_vision.adapters import hub

    sent = []
    monkeypatch.setattr(hub, "push_adapter", lambda folder, name: sent.append((folder, name)) or "https://hub/x")
    assert publish(TinyConfig(output_dir=str(tmp_path / "run"))) == "https://hub/x"
    publish(TinyConfig(output_dir=str(tmp_path / "run"), hub_model_id="me/digits"))
    assert sent == [(tmp_path / "run" / "adapter", "run"), (tmp_path / "run" / "adapter", "me/digits")]
    assert "https://hub/x" in capsys.readouterr().out


def test_a_run_ends_in_a_table_its_files_and_the_next_command(tmp_path, capsys):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "holiday.png").write_text("not the run's")
    ledger = Ledger(tmp_path, "run")
    for name in ("results.json", "loss.png", "report.html", "config.yaml"):
        with ledger.writing_file(name) as path:
            path.write_text("")
    metrics = {"before": {"top1": 0.5, "ece": 0.2}, "after": {"top1": 0.75, "ece": None, "fd_x_floor": 1.0}}
    print_outcome(results(trainable_parameters=1234, seconds_total=61.6, metrics=metrics), tmp_path)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "",
        "10 samples",
        "                  before      after",
        "top1        ↑        0.5       0.75",
        "ece         ↓        0.2       none",
        "fd_x_floor          none          1",
        "",
        "1,234 parameters trained; the run took 62 s",
        f"  {tmp_path}/report.html",
        f"  {tmp_path}/adapter",
        f"  {tmp_path}/loss.png",
        f"  {tmp_path}/results.json",
        f"next: onelora predict --adapter {tmp_path}/adapter PICTURES",
    ]
