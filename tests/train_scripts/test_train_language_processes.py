"""train_language on two processes, the base whole on each or shared between them: losses and metrics are those of one."""

import json

import pytest
import torch
from processes import run_together
from safetensors.torch import load_file
from tiny_language import save_llama

from train_scripts import train_language


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny LLaMA, and questions whose answers differ much in length."""
    folder = tmp_path_factory.mktemp("files")
    save_llama(folder / "base")
    rows = [{"query": f"{n}?", "response": "y" * (1 + 7 * n % 23) + f" The answer is: {n}"} for n in range(25)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def launch(files, output, processes=1, **changed):
    """The history of the training, the curve of its validation loss, its metrics and its adapter."""
    flags = {
        "pretrained_model_name_or_path": files / "base",
        "data_file": files / "rows.jsonl",
        "output_dir": output,
        "prompt_template": "none",
        "max_train_steps": 3,
        "lr_warmup_steps": 0,
        "train_batch_size": 4,
        "eval_batch_size": 2,
        "max_length": 64,
        "validation_fraction": 0.2,
        "validation_steps": 2,
        "validation_loss_steps": 1,
        "checkpointing_steps": 3,
        "exact_match_samples": 3,
        "num_examples": 3,
        "max_new_tokens": 3,
        "report_to": "none",
        **changed,
    }
    command = [train_language.__file__, *(f"--{name}={value}" for name, value in flags.items())]
    found = run_together(command, processes)
    assert [code for code, _ in found] == [0] * processes, found
    progress = torch.load(output / "checkpoint-3" / "training_state.pt", weights_only=True)["progress"]
    results = json.loads((output / "results.json").read_text())
    adapter = load_file(output / "adapter" / "adapter_model.safetensors")
    return progress, results, adapter, json.loads((output / "examples.json").read_text())


def assert_alike(found, expected):
    progress, results, adapter, examples = found
    for name in ("loss", "accuracy", "grad_norm"):
        assert progress["history"][name] == pytest.approx(expected[0]["history"][name], rel=1e-4), name
    for (_, loss), (_, other) in zip(progress["validation_losses"], expected[0]["validation_losses"], strict=True):
        assert loss == pytest.approx(other, rel=1e-4)
    for when in ("before", "after"):
        assert results["metrics"][when] == pytest.approx(expected[1]["metrics"][when], rel=1e-4)
    assert results["protocol"] == expected[1]["protocol"] and examples == expected[3]
    assert adapter.keys() == expected[2].keys()
    for name, tensor in adapter.items():
        torch.testing.assert_close(tensor, expected[2][name], rtol=1e-3, atol=1e-6)


def test_however_a_step_is_shared_out_it_is_the_same(files, tmp_path):
    one = launch(files, tmp_path / "one")
    assert_alike(launch(files, tmp_path / "accumulated", train_batch_size=1, gradient_accumulation_steps=4), one)
    half = {"train_batch_size": 2, "gradient_accumulation_steps": 1}
    assert_alike(launch(files, tmp_path / "two", 2, **half), one)
    sharded = {"shard_base": "true", "gradient_checkpointing": "true", "packing": "true", **half}
    assert_alike(launch(files, tmp_path / "sharded", 2, **sharded), one)
