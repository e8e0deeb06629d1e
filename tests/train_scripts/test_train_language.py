"""The script as users run it, on a few sums in real formats and a tiny LLaMA."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from tiny_language import save_llama

from onelora_vision.adapters.bases import load_base
from onelora_vision.adapters.export import export
from onelora_vision.adapters.file import read_adapter
from onelora_vision.adapters.inspection import PROBLEM, examine
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from onelora_vision.training.command_line import parse_config
from onelora_vision.training.setup import start_run
from train_scripts import train_language
from train_scripts.train_language import LanguageConfig, main

CONFIGS = sorted((Path(train_language.__file__).parent / "configs" / "language").glob("*.yaml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Twenty short sums, in MetaMathQA's columns."""
    path = tmp_path_factory.mktemp("sums") / "sums.json"
    rows = [{"query": f"{n} + 1?", "response": f"The answer is: {n + 1}", "type": "GSM"} for n in range(20)]
    path.write_text(json.dumps(rows))
    return path


def arguments(base, data, output, **changes) -> list[str]:
    settings = {
        "pretrained_model_name_or_path": base,
        "data_file": data,
        "output_dir": output,
        "max_train_steps": 4,
        "lr_warmup_steps": 0,
        "train_batch_size": 4,
        "eval_batch_size": 3,
        "prompt_template": "none",
        "max_new_tokens": 4,
        "exact_match_samples": 2,
        "num_examples": 3,
        "report_to": "none",
        **changes,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def config_of(*args, **changes) -> LanguageConfig:
    return parse_config(LanguageConfig, arguments(*args, **changes))


def run(*args, **changes) -> dict:
    config = config_of(*args, **changes)
    with start_run(config) as started:
        return train_language.train(config, started)


@pytest.mark.draws
def test_a_run_leaves_adapter_results_and_examples(base, sums, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(
            arguments(base, sums, tmp_path, validation_steps=2, metric_for_best_model="loss", greater_is_better=False)
        )
    assert ended.value.code == 0
    assert "rows: 15 to train on, 1 to validation, 4 to test" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    before, after = results["metrics"]["before"], results["metrics"]["after"]
    assert results["task"] == "language" and after["loss"] < before["loss"]
    assert after["perplexity"] == pytest.approx(torch.tensor(after["loss"]).exp().item(), rel=1e-5)
    assert after["exact_match"] in (0, 0.5, 1)
    assert results["trainable_parameters"] == 2 * (4 * 16 + 2 * 32 + 16)
    assert "json test, 4 rows of at most 512 tokens, own prompt" not in results["protocol"]
    assert "json test, 4 rows of at most 512 tokens, none prompt" in results["protocol"]
    examples = json.loads((tmp_path / "examples.json").read_text())
    assert len(examples) == 3 and examples[0].keys() == {"query", "truth", "before", "after"}
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Examples</h2>" in page and examples[2]["query"] in page
    adapter = read_adapter(tmp_path / "adapter")
    assert adapter.info.data == "15 rows of json" and adapter.info.metrics["after"] == after
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert "pipeline_tag: text-generation" in card and "adapted.answer(" in card
    assert not [found for found in examine(tmp_path / "adapter", base) if found["level"] == PROBLEM]


def test_the_saved_adapter_writes_the_reported_answers(base, sums, tmp_path):
    run(base, sums, tmp_path, learning_rate=0.05, num_examples=4)
    examples = json.loads((tmp_path / "examples.json").read_text())
    answers = load_adapted(tmp_path / "adapter").answer([row["query"] for row in examples])
    assert answers == [row["after"]["answer"] for row in examples]
    assert answers != [row["before"]["answer"] for row in examples]


def test_the_reported_loss_is_the_mean_over_the_answers_tokens(base, sums, tmp_path):
    after = run(base, sums, tmp_path, learning_rate=0.05, eval_batch_size=3)["metrics"]["after"]
    answerer, rows = load_adapted(tmp_path / "adapter").base, json.loads(sums.read_text())
    test = {row["query"] for row in json.loads((tmp_path / "examples.json").read_text())}
    config = config_of(base, sums, tmp_path)
    judged = train_language.open_splits(config).test
    assert {row.query for row in judged} >= test and len(judged) == 4 and len(rows) == 20
    total, count = 0.0, 0
    for row in judged:
        asked = answerer.tokenizer(row.query)["input_ids"]
        answer = answerer.tokenizer(row.response, add_special_tokens=False)["input_ids"] + [2]
        logits = answerer.model(input_ids=torch.tensor([asked + answer])).logits[0].log_softmax(1)
        total -= sum(logits[len(asked) + i - 1, token].item() for i, token in enumerate(answer))
        count += len(answer)
    assert after["loss"] == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "mora1", "bitfit", "onelora_norms", "full", "sum+scale"])
def test_every_kind_of_method_trains(base, sums, tmp_path, method):
    results = run(base, sums, tmp_path, method=method, max_train_steps=1, exact_match_samples=0, num_examples=0)
    assert results["trainable_parameters"] > 0 and "exact_match" not in results["metrics"]["after"]
    assert read_adapter(tmp_path / "adapter").info.method == method
    assert not (tmp_path / "examples.json").exists()


def test_lora_on_q_k_v_alone(base, sums, tmp_path):
    few = {"exact_match_samples": 0, "num_examples": 0, "max_train_steps": 1}
    results = run(base, sums, tmp_path, method="lora", target_modules=r"[qkv]_proj", **few)
    assert results["trainable_parameters"] == 2 * 3 * (16 + 16)


def test_packing_changes_nothing_but_the_padding(base, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    rows = [{"query": f"{n}?", "response": "y" * (n * n % 19) + str(n)} for n in range(20)]
    data.write_text("\n".join(map(json.dumps, rows)))
    few = {"exact_match_samples": 0, "num_examples": 0, "max_length": 40, "learning_rate": 0.05}
    plain = run(base, data, tmp_path / "plain", **few)
    assert "packing: " not in capsys.readouterr().out
    packed = run(base, data, tmp_path / "packed", packing=True, **few)
    assert re.search(
        r"packing: 4 rows in [12]\.\d sequences of at most 40 tokens; \d+% of the tokens are padding, \d+% without",
        capsys.readouterr().out,
    )
    assert packed["metrics"]["after"] == pytest.approx(plain["metrics"]["after"], rel=1e-4)
    tensors = read_adapter(tmp_path / "plain" / "adapter").tensors
    for name, tensor in read_adapter(tmp_path / "packed" / "adapter").tensors.items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-3, atol=1e-5)


def test_bf16_with_checkpointing(base, sums, tmp_path):
    flags = {"mixed_precision": "bf16", "base_dtype": "bf16", "gradient_checkpointing": True, "packing": True}
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        metrics = run(base, sums, tmp_path, **flags)["metrics"]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    loaded, examples = load_adapted(tmp_path / "adapter"), json.loads((tmp_path / "examples.json").read_text())
    assert loaded.base.model.dtype == torch.bfloat16
    assert loaded.answer([row["query"] for row in examples]) == [row["after"]["answer"] for row in examples]
    adapter = read_adapter(tmp_path / "adapter")
    assert load_base(adapter.info).model.dtype == torch.float32  # to be merged into
    adapter.info.extra["base_dtype"] = "fp4"
    with pytest.raises(InputError, match="base_dtype 'fp4': must be fp32 or bf16"):
        load_base(adapter.info, as_trained=True)


def test_a_resumed_run_ends_in_the_same_bits(base, sums, tmp_path):
    few = {"exact_match_samples": 0, "num_examples": 0}
    whole = run(base, sums, tmp_path / "whole", max_train_steps=4, **few)
    run(base, sums, tmp_path / "part", max_train_steps=2, lr_scheduler="constant", **few)
    flags = {"max_train_steps": 4, "lr_scheduler": "constant", "resume_from_checkpoint": "latest"}
    resumed = run(base, sums, tmp_path / "part", **flags, **few)
    same = run(base, sums, tmp_path / "same", max_train_steps=4, lr_scheduler="constant", **few)
    assert resumed["metrics"]["after"] == same["metrics"]["after"] != whole["metrics"]["after"]


def test_a_merged_export_is_reloaded_by_transformers_alone(base, sums, tmp_path, forked_reloads):
    run(base, sums, tmp_path / "run", exact_match_samples=0, num_examples=0, max_train_steps=2)
    export(tmp_path / "run" / "adapter", "merged", tmp_path / "merged")
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_a_file_of_its_own_to_evaluate_on(base, sums, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"query": "a", "response": "1"}\n{"query": "b", "response": "2"}\n')
    rows = train_language.open_splits(config_of(base, sums, tmp_path, eval_data_file=other))
    assert [row.query for row in rows.test] == ["a", "b"] and len(rows.train) + len(rows.validation) == 20


def test_a_dry_run_says_what_was_cut_and_left_out(base, tmp_path, capsys):
    data = tmp_path / "rows.jsonl"
    lines = [{"query": "q" * 3, "response": "r" * (40 if n == 0 else 3)} for n in range(20)] + [{"query": "x"}]
    data.write_text("\n".join(map(json.dumps, lines)))
    flags = {"dry_run": "true", "on_bad_row": "skip", "max_length": 20}
    run(base, data, tmp_path / "out", **flags)
    assert "; 1 bad ones skipped; 1 longer than 20 tokens cut" in capsys.readouterr().out
    run(base, data, tmp_path / "out", **flags, long_rows="skip")
    assert "1 longer than 20 tokens skipped" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_dtype": "bf16"}, "--base_dtype bf16 needs --mixed_precision bf16"),
        ({"prompt_template": "metamat"}, "did you mean 'metamath'"),
        ({"held_out_fraction": 1}, "--held_out_fraction is 1"),
        ({"max_length": 0}, "--max_length is 0"),
        ({"prompt_column": "q"}, "belong together"),
        ({"dataset_name": "arithmetic"}, "--data_file has no effect with --dataset_name arithmetic"),
        ({"download": "true"}, "--download has no effect with --dataset_name json"),
        ({"validation_fraction": 0, "eval_split": "validation"}, "set --validation_fraction"),
        (
            {"held_out_fraction": 0.01},
            "--held_out_fraction 0.01 of 20 rows leaves 20 to train on and 0 to evaluate on",
        ),
        ({"validation_fraction": 0.01}, "--validation_fraction 0.01 of 16 rows leaves 16 to train on"),
        ({"eval_data_file": "a.jsonl", "held_out_fraction": 0.3}, "no effect with --eval_data_file a.jsonl"),
        ({"max_new_tokens": 512}, "knows 512 positions, but the longest prompt has "),
        ({"max_length": 3}, "within --max_length 3 tokens"),
        ({"pretrained_model_name_or_path": "nowhere"}, "nowhere: no such folder"),
        ({"pretrained_model_name_or_path": "embedded/sit"}, "no embedded base of that name; it has embedded/language"),
        ({"shard_base": "true"}, "--shard_base shards the base across processes, but there is only one"),
        ({"method": "head"}, "method head trains nothing on this model"),
        ({"eval_data_file": "/dev/null"}, "null: holds no rows"),
    ],
)
def test_bad_input_is_one_line(base, sums, tmp_path, changes, message):
    with pytest.raises(InputError) as caught:
        run(base, sums, tmp_path / "out", **changes)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_rows_that_are_trained_and_evaluated_on_are_told(base, sums, tmp_path, caplog):
    run(base, sums, tmp_path / "out", eval_data_file=sums, dry_run="true")
    assert "--eval_data_file: 20 of its 20 rows are also in the training data" in caplog.text


def test_rows_beyond_the_network_s_positions_are_refused(base, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps({"query": "q", "response": "r" * 600}) for _ in range(20)))
    with pytest.raises(
        InputError, match="knows 512 positions, but the longest row has 600 tokens: lower --max_length"
    ):
        run(base, data, tmp_path / "out", max_length=600)
    run(base, data, tmp_path / "out", max_length=512, dry_run="true")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_recipes_parse_and_are_the_paper_s_split(path):
    config = parse_config(LanguageConfig, ["--config", str(path)])
    assert config.held_out_fraction == 0.2 and config.prompt_template == "metamath"
    assert set(yaml.safe_load(path.read_text())) >= {"pretrained_model_name_or_path", "data_file", "max_length"}
    assert path.stem.endswith(config.method) and config.train_batch_size * config.gradient_accumulation_steps == 32


@pytest.mark.slow
def test_the_embedded_job_learns_to_count_stories(tmp_path):
    config = parse_config(LanguageConfig, [f"--output_dir={tmp_path}", "--report_to=none"])
    with start_run(config) as started:
        metrics = train_language.train(config, started)["metrics"]
    assert metrics["before"]["exact_match"] < 0.05 and metrics["after"]["exact_match"] > 0.9
