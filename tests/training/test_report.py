import json

import pytest
from tiny_run import TinyConfig, tiny_model

from onelora_vision.errors import InputError
from onelora_vision.training.loop import TrainingSummary
from onelora_vision.training.report import (
    aggregate_seeds,
    count_parameters,
    plot_loss,
    print_plan,
    publish,
    write_results,
)

SUMMARY = TrainingSummary(3, 0, 0.3, 0.1, 0.01, {"loss": [3.0, 2.0, 1.0]}, [], None, None)


def results(tmp_path, seed=0, accuracy=0.5, **changes):
    config = TinyConfig(seed=seed)
    written = write_results(
        tmp_path / "results.json",
        task="classification",
        config=config,
        model=tiny_model(config),
        summary=SUMMARY,
        before={"accuracy": 0.1},
        after={"accuracy": accuracy},
        protocol="10 samples",
        seconds_total=1.5,
    )
    return {**written, **changes}


def test_results_have_the_fixed_keys_and_count_whole_modules_apart(tmp_path):
    results(tmp_path)
    written = json.loads((tmp_path / "results.json").read_text())
    assert {
        "task", "method", "seed", "trainable_parameters", "adapter_parameters", "metrics", "protocol",
        "seconds_total", "seconds_per_step", "data_seconds_per_step", "peak_memory_bytes", "versions", "config",
    } <= written.keys()  # fmt: skip
    adapter = 2 * ((12 + 36) + (12 + 48))  # rank 1 on qkv and fc1 of two blocks
    assert written["adapter_parameters"] == adapter
    assert written["trainable_parameters"] == adapter + 12 * 3 + 3
    assert written["metrics"] == {"before": {"accuracy": 0.1}, "after": {"accuracy": 0.5}}
    assert written["peak_memory_bytes"] > 50e6
    assert written["config"]["seed"] == 0


def test_a_nan_figure_becomes_null(tmp_path):
    results(tmp_path, accuracy=float("nan"))
    assert json.loads((tmp_path / "results.json").read_text())["metrics"]["after"] == {"accuracy": None}


def test_seeds_are_averaged_with_the_sample_deviation(tmp_path):
    runs = [results(tmp_path, seed, accuracy) for seed, accuracy in ((0, 0.5), (1, 0.7), (2, 0.9))]
    summary = aggregate_seeds(runs)
    assert summary["seeds"] == [0, 1, 2]
    assert summary["metrics"]["accuracy"] == {"mean": pytest.approx(0.7), "std": pytest.approx(0.2)}
    assert aggregate_seeds(runs[:1])["metrics"]["accuracy"]["std"] is None


def test_unlike_runs_are_not_averaged(tmp_path):
    with pytest.raises(InputError, match="differ in protocol"):
        aggregate_seeds([results(tmp_path, 0), results(tmp_path, 1, protocol="20 samples")])
    with pytest.raises(InputError, match="one result per seed"):
        aggregate_seeds([results(tmp_path, 0), results(tmp_path, 0)])
    with pytest.raises(InputError, match="not finite for seed 1"):
        aggregate_seeds([results(tmp_path, 0), results(tmp_path, 1, float("nan"))])


def test_the_loss_is_drawn(tmp_path):
    plot_loss(tmp_path / "loss.png", {"loss": [1 / (1 + step) for step in range(120)]})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_plan_counts_epochs_and_bytes(capsys):
    config = TinyConfig(max_train_steps=10, train_batch_size=4, gradient_accumulation_steps=2)
    model = tiny_model(config)
    print_plan(config, model, num_samples=40)
    printed = capsys.readouterr().out
    assert f"{count_parameters(model)['trainable_parameters']:,} of" in printed
    assert "10, 2.00 epochs" in printed


def test_the_adapter_is_uploaded_when_asked(tmp_path, monkeypatch, capsys):
    from onelora_vision.adapters import hub

    sent = []
    monkeypatch.setattr(hub, "push_adapter", lambda folder, name: sent.append((folder, name)) or "https://hub/x")
    publish(TinyConfig(output_dir=str(tmp_path / "run")))
    assert not sent
    publish(TinyConfig(output_dir=str(tmp_path / "run"), push_to_hub=True))
    publish(TinyConfig(output_dir=str(tmp_path / "run"), push_to_hub=True, hub_model_id="me/digits"))
    assert sent == [(tmp_path / "run" / "adapter", "run"), (tmp_path / "run" / "adapter", "me/digits")]
    assert "https://hub/x" in capsys.readouterr().out
