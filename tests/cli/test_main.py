import importlib
import shlex

import pytest

from onelora_vision.cli import main
from onelora_vision.cli.main import _GROUPS, COMMANDS
from onelora_vision.cli.train import SCRIPTS
from onelora_vision.runtime.command import Parser


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_in_a_group_and_its_example_is_right(name):
    command = COMMANDS[name]
    words = shlex.split(command.example)
    assert command.group in _GROUPS and words[0] == name
    module = importlib.import_module(f"onelora_vision.cli.{'import_' if name == 'import' else name}")
    if not hasattr(module, "main"):
        parser = Parser()
        module.add_arguments(parser)
        parser.parse_args(words[1:])


def test_the_overview_shows_them_all(onelora):
    code, text, _ = onelora("--help")
    assert code == 0 and all(f"onelora {command.example}" in text for command in COMMANDS.values())
    assert onelora("help")[1] == text and onelora()[1] == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "no command 'trian'; did you mean 'train'?"),
        (["train", "dti"], "no task 'dti' to train; did you mean 'dit'?"),
        (["recipes", "dti"], "no recipes for the task 'dti'; did you mean 'dit'?"),
    ],
)
def test_misspelt_names_are_answered_with_the_nearest(onelora, arguments, message):
    code, _, errors = onelora(*arguments)
    assert code == 2 and errors.startswith(f"error: {message}")


def test_help_of_a_command(onelora):
    assert onelora("help", "inspect")[1] == onelora("inspect", "--help")[1]
    assert "example: onelora inspect out/adapter" in onelora("help", "inspect")[1]
    assert onelora("version")[1] == onelora("--version")[1]


@pytest.mark.parametrize("task", SCRIPTS)
def test_train_hands_its_line_to_the_script(task, monkeypatch):
    seen = {}
    monkeypatch.setattr("runpy.run_module", lambda module, run_name: seen.update(module=module, name=run_name))
    with pytest.raises(SystemExit):
        main(["train", task, "--seed", "3"])
    assert seen == {"module": f"onelora_vision.train_scripts.train_{task}", "name": "__main__"}
    import sys

    assert sys.argv == [f"onelora train {task}", "--seed", "3"]


def test_recipes_are_listed_with_what_they_are(onelora):
    code, rows, _ = onelora("recipes", "--json")
    assert code == 0 and {row["task"] for row in rows} == {"dit", "classification", "depth", "language"}
    assert all(len(row["about"]) > 10 for row in rows)
    text = onelora("recipes", "dit")[1]
    assert "food101-xl2-onelora" in text and "cifar" not in text
