import dataclasses
import re
import shlex

import pytest

from onelora_vision.errors import InputError
from onelora_vision.training.command_line import parse_config
from onelora_vision.training.config import TrainingConfig, option
from onelora_vision.training.flag_help import ESSENTIAL, grouped, help_text
from train_scripts import train_classification, train_depth, train_dit, train_language

SCRIPTS = {
    train_dit: train_dit.DiTConfig,
    train_depth: train_depth.DepthConfig,
    train_language: train_language.LanguageConfig,
    train_classification: train_classification.ClassificationConfig,
}
each_script = pytest.mark.parametrize(("script", "config"), SCRIPTS.items(), ids=lambda x: x.__name__)


@dataclasses.dataclass(kw_only=True)
class LonelyConfig(TrainingConfig):
    shape: str = option("round", "a flag without a group")
    seed: int = option(5, "another default")


@each_script
def test_every_flag_is_in_one_group_and_the_most_used_come_first(script, config):
    groups = grouped(config)
    names = [field.name for fields in groups.values() for field in fields]
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(config))
    assert list(groups)[:2] == ["most used", "data"] and "other" not in groups
    assert 10 <= len(groups["most used"]) <= 13


@each_script
def test_the_help_has_each_flag_with_its_default(script, config, capsys):
    with pytest.raises(SystemExit) as leaving:
        parse_config(config, ["--rank", "3", "--help"], script.__doc__)
    printed = capsys.readouterr().out
    assert leaving.value.code == 0
    entries = re.split(r"\n  (?=--)", printed.partition("\nmost used:")[2].partition("\n- and _")[0])
    assert len(entries) == len(dataclasses.fields(config)) + 2  # the title, and --config
    assert all("(default:" in " ".join(entry.split()) for entry in entries[2:])


@each_script
def test_the_examples_of_the_help_can_be_run(script, config):
    examples = help_text(config, script.__doc__).partition("\nexamples:\n")[2].replace("\\\n", "")
    commands = [shlex.split(line) for line in examples.strip().splitlines()]
    assert 2 <= len(commands) <= 4
    for command in commands:
        place = next(
            i for i, word in enumerate(command) if word == f"train_scripts/{script.__name__.split('.')[-1]}.py"
        )
        parse_config(config, command[place + 1 :])


def test_a_flag_without_a_group_comes_last_and_an_override_stays_in_its_group():
    groups = grouped(LonelyConfig)
    assert [field.name for field in groups["other"]] == ["shape"] and list(groups)[-1] == "other"
    assert "seed" in ESSENTIAL and "seed" in [field.name for field in groups["most used"]]
    text = help_text(LonelyConfig, "About it.")
    assert "About it." in text and "another default (default: 5)" in text and "examples" not in text
    assert "--[no_]greater_is_better" in text and "--use_ema " in text


def test_help_beats_a_mistake_and_a_mistake_without_help_does_not_print_it(capsys):
    with pytest.raises(SystemExit):
        parse_config(LonelyConfig, ["-h", "--nonsense"])
    assert capsys.readouterr().out.startswith("usage: ")
    with pytest.raises(InputError):
        parse_config(LonelyConfig, ["--nonsense"])
    assert not capsys.readouterr().out
