import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest
import yaml

from onelora_vision.errors import InputError
from onelora_vision.training.command_line import parse_config
from onelora_vision.training.config import TrainingConfig, option, save_config


@dataclass(kw_only=True)
class ScriptConfig(TrainingConfig):
    learning_rate: float = option(0.5, "another default")
    shape: Literal["round", "square"] = option("round", "of what")
    sizes: list[int] | None = option(None, "several")


def parse(*argv):
    return parse_config(ScriptConfig, list(argv))


def test_defaults_are_the_scripts_own():
    config = parse()
    assert (config.learning_rate, config.shape, config.train_batch_size) == (0.5, "round", 16)


def test_dashes_and_underscores_are_the_same_in_names_but_not_in_values():
    assert parse("--learning-rate", "1e-4").learning_rate == 1e-4
    assert parse("--learning_rate=1e-4", "--output-dir=my-run").output_dir == "my-run"
    assert parse("--output_dir", "a-b").output_dir == "a-b"


def test_bools_are_flags_that_can_be_denied():
    assert parse("--use-ema").use_ema
    assert not parse("--use_ema", "--no-use-ema").use_ema
    assert parse("--use_ema", "true").use_ema
    assert not parse("--use_ema=false").use_ema


def test_null_and_lists():
    config = parse("--max_train_steps", "null", "--num_train_epochs", "3", "--sizes", "[1, 2]")
    assert (config.max_train_steps, config.num_train_epochs, config.sizes) == (None, 3, [1, 2])


def test_a_file_is_read_and_flags_beat_it_wherever_they_stand(tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-4\nseed: 7\nuse_ema: true\n")
    config = parse("--seed", "8", "--config", str(tmp_path / "run.yaml"))
    assert (config.learning_rate, config.seed, config.use_ema) == (1e-4, 8, True)


def test_a_saved_config_reads_back_equal(tmp_path):
    config = parse(
        "--seed", "5", "--shape", "square", "--sizes", "[3]", "--adam_epsilon", "1e-6", "--method", "sum+norms"
    )
    save_config(config, tmp_path / "config.yaml")
    assert parse("--config", str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lerning_rate", "1"], "unknown flag --lerning_rate; did you mean '--learning_rate'?"),
        (["--train-batchsize=3"], "did you mean '--train_batch_size'?"),
        (["--no_seed"], "unknown flag --no_seed"),
        (["--output_dir", ""], "--output_dir is '', but must be the name of a folder"),
        (["--learning_rate", "fast"], "--learning_rate is fast, but must be a number"),
        (["--rank", "1.5"], "--rank is 1.5, but must be a whole number"),
        (["--use_ema", "maybe"], "--use_ema is maybe, but must be true or false"),
        (["--max_train_steps", "x"], "--max_train_steps is x, but must be a whole number or null"),
        (["--shape", "oval"], "--shape is oval, but must be round or square"),
        (["--mixed_precision", "f8"], "--mixed_precision is f8, but must be no or fp16 or bf16 or null"),
        (["--learning_rate", "-1"], "--learning_rate is -1.0, but must be greater than 0"),
        (["--ema_decay", "1"], "--ema_decay is 1.0, but must be in [0, 1)"),
        (["--lr_warmup_steps", "-5"], "--lr_warmup_steps is -5, but must be 0 or more"),
        (["--checkpoints_total_limit", "0"], "--checkpoints_total_limit is 0, but must be at least 1"),
        (["--max_train_steps", "null"], "neither --max_train_steps nor --num_train_epochs"),
        (["--metric_for_best_model", "fid"], "set --validation_steps"),
        (["--seed"], "--seed"),
        (["stray"], "stray"),
        (["--config"], "--config needs"),
        (["--config", "/nowhere.yaml"], "--config /nowhere.yaml: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(argv, message):
    with pytest.raises(InputError) as error:
        parse(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ("learning_rate: fast", "--learning_rate is fast, but must be a number"),
        ("- a\n- b", "expected lines of 'name: value', found list"),
        ("a: [", "cannot read"),
        ("5: 6", "unknown key 5"),
    ],
)
def test_a_mistake_in_a_file_names_file_or_key(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        parse("--config", str(tmp_path / "bad.yaml"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_field_has_a_line_of_help(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse("--help")
    assert leaving.value.code == 0
    printed = capsys.readouterr().out
    assert "--learning_rate" in printed and "another default" in printed
    assert all(field.metadata["help"] for field in dataclasses.fields(TrainingConfig))


def test_the_resolved_config_is_plain_yaml(tmp_path):
    save_config(parse(), tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["learning_rate"] == 0.5
