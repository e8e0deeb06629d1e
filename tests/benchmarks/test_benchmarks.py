"""Every benchmark runs, on small models, and reports what its documentation says."""

import importlib
import json

import pytest
import torch

from benchmarks import profile, step, subjects

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("step", "memory", "scale", "dit_xl2")]


@pytest.mark.parametrize("name", ["swap", "bank", "data", "profile", *SLOW])
def test_benchmark_runs_quickly(name, tmp_path, capsys):
    output = tmp_path if name == "step" else tmp_path / "result.json"
    importlib.import_module(f"benchmarks.{name}").main(["--quick", "--output", str(output)])
    assert "|---|" in capsys.readouterr().out
    report = json.loads((tmp_path / "step.json" if name == "step" else output).read_text())
    assert "device" in report
    if name == "step":
        assert len(list(tmp_path.glob("step-*.png"))) == len(step.QUICK)


def test_the_frozen_reference_trains_no_block_and_its_gradient_flows_through_all():
    subject = subjects.make_subject("dit-s-8", blocks=2)
    model = subjects.adapted(subject, subjects.FROZEN)
    inputs = []
    for block in model.get_base_model().transformer_blocks[1:]:
        block.register_full_backward_hook(lambda module, grad_input, grad_output: inputs.append(grad_output[0]))
    subjects.training_step(model, subjects.random_inputs(subject, 2), "fp32")()
    assert len(inputs) == 1 and inputs[0].abs().sum() > 0
    assert [name for name, p in model.named_parameters() if p.requires_grad and "embedding_table" not in name] == []


def test_a_steps_seconds_are_told_apart_by_what_they_are_spent_on():
    x, weight = torch.randn(300, 400), torch.zeros(300, 400, requires_grad=True)
    optimizer = torch.optim.AdamW([weight])

    def step():
        (weight @ x.T).square().sum().backward()
        optimizer.step()

    found = profile.seconds_by_group(step, 2)
    assert set(found) == {*profile.GROUPS, "other operations", "optimizer", "rest"}
    assert min(found["matrix products"], found["sums"], found["optimizer"], found["other operations"]) > 0
    assert found["norms"] == found["activations"] == 0.0
    assert profile.group_of("addmm_") == "matrix products" and profile.group_of("mul") == "other operations"


def test_methods_share_the_frozen_base_and_save_what_they_should():
    subject = subjects.make_subject("dit-s-8", blocks=1)
    ours, lora = (subjects.adapted(subject, method) for method in ("onelora", "lora"))
    own = {p.data_ptr() for p in subject.model.parameters()}
    shared = [{p.data_ptr() for p in model.parameters()} & own for model in (ours, lora)]
    assert shared[0] == shared[1] and len(shared[0]) > 10
    rows = step.measure(subject, ["onelora"], 2, 0.0, False)
    assert [row["method"] for row in rows] == ["frozen", "onelora", "onelora, merged"]
    assert 1 <= rows[1]["saved_ratio"] < 1.05 and rows[1]["trainable_parameters"] > rows[0]["trainable_parameters"]


def test_saved_bytes_leave_out_what_is_owned_and_what_was_dropped_on_the_way():
    w, x = torch.randn(8, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    assert subjects.saved_bytes(lambda: (x @ w.T).exp(), [w, x]) == 3 * 8 * 4
    assert subjects.saved_bytes(lambda: (x @ w.T).exp() + w.exp().sum().detach(), [w, x]) == 3 * 8 * 4
