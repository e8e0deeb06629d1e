"""Builds a script's config from a command line and a YAML file, before any slow import."""

import dataclasses
import os
import re
import sys
import typing
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

from onelora_vision.errors import InputError, nearest, one_line
from onelora_vision.runtime.command import ends_at_once
from onelora_vision.storage.textfiles import named_file, read_text
from onelora_vision.training.config import TrainingConfig
from onelora_vision.training.flag_help import help_text
from onelora_vision.training.recipes import config_file

_PATH_ENDINGS = ("_dir", "_file", "_path", "_weights")  # of settings that are paths
Config = TypeVar("Config", bound=TrainingConfig)


def parse_config(config_class: type[Config], argv: list[str] | None = None, description: str | None = None) -> Config:
    """Parse a command line: defaults, then ``--config file.yaml``, then the flags.

    ``-`` and ``_`` are interchangeable in names; a bool is ``--flag``, ``--no_flag`` or ``--flag true``. ``--help`` and
    ``--version`` print and exit.

    Raises:
        InputError: an unknown flag or key (suggests the closest one), or a value of the wrong type or range.
    """
    from jsonargparse import ArgumentError

    arguments = [_with_underscores(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    if {"-h", "--help"} & {*arguments}:
        print(help_text(config_class, description or ""), end="")
        sys.exit(0)
    if "--version" in arguments:
        print(f"onelora_vision {version('onelora_vision')}")
        sys.exit(0)
    parser = _parser(config_class)
    _refuse_unknown_flags(arguments, config_class)
    try:
        values = parser.parse_args(_config_files_first(arguments, config_class))
    except ArgumentError as error:
        raise InputError(_readable(error.message, typing.get_type_hints(config_class))) from None
    return config_class(**{field.name: values[field.name] for field in dataclasses.fields(config_class)})


def check_command_line(config_class: type[TrainingConfig], description: str | None) -> None:
    """Check the flags of the running script and print what it will do; bad input ends the program.

    Scripts call this between their settings and their other imports, so neither has to wait for torch.
    """

    def check() -> None:
        config = parse_config(config_class, None, description)
        if os.environ.get("RANK", "0") == "0":
            print(config.headline, flush=True)

    ends_at_once(check)


def _parser(config_class: type[TrainingConfig]):
    from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    types = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind = {"action": ActionYesNo, "nargs": "?"} if types[field.name] is bool else {"type": types[field.name]}
        parser.add_argument(f"--{field.name}", default=field.default, **kind)
    return parser


def _with_underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _refuse_unknown_flags(arguments: list[str], config_class: type[TrainingConfig]) -> None:
    types = typing.get_type_hints(config_class)
    names = {"config", "print_config", "help", *types} | {f"no_{name}" for name, kind in types.items() if kind is bool}
    for argument in arguments:
        name = argument[2:].partition("=")[0]
        if argument.startswith("--") and name not in names:
            known = [f"--{known}" for known in sorted(names)]
            raise InputError(f"unknown flag --{name}{nearest('--' + name, known, 'flag')}")


def _config_files_first(arguments: list[str], config_class: type[TrainingConfig]) -> list[str]:
    """Check the files' keys, and move ``--config file`` to the front, so that flags override it wherever it appears."""
    files, rest, remaining = [], [], iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name != "--config":
            rest.append(argument)
            continue
        path = value if equals else next(remaining, None)
        if path is None:
            raise InputError("--config needs the path of a YAML file, or the name of a recipe (onelora recipes)")
        files += ["--config", _checked_settings(config_file(path), config_class)]
    return files + rest


def _checked_settings(path: str, config_class: type[TrainingConfig]) -> str:
    """The contents of a YAML file after checking its keys, with / in its paths."""
    import yaml

    text = read_text(path, "--config")
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"cannot read --config {path}: {one_line(error)}") from None
    if not isinstance(settings, dict):
        raise InputError(f"--config {path}: expected lines of 'name: value', found {type(settings).__name__}")
    known = [field.name for field in dataclasses.fields(config_class)]
    for key, value in settings.items():
        if key not in known:
            raise InputError(f"--config {path}: unknown key {key!r}{nearest(key, known, 'key')}")
        if key.endswith(_PATH_ENDINGS) and isinstance(value, str):
            settings[key] = os.fspath(named_file(Path(), value)) if "\\" in value else value
    return yaml.safe_dump(settings, allow_unicode=True)


def _readable(message: str, types: dict[str, type]) -> str:
    """The parser's message about a value as one line, with the flag's name."""
    message = one_line(message, 1000)
    name = re.search(r'Parser key "(\w+)"|argument --(\w+).*invalid', message)
    value = re.search(r"(?:Got|Given) value:\s*(.*)$|invalid \w+ value: '(.*)'", message)
    if not name or not value:
        return message
    name, value = name[1] or name[2], value[1] or value[2]
    return f"--{name} is {value}, but must be {_words(types[name])}"


def _words(kind) -> str:
    """A field's type in words: ``int | None`` is "a whole number or null"."""
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    if typing.get_args(kind):
        return " or ".join(map(_words, typing.get_args(kind)))
    return {bool: "true or false", int: "a whole number", float: "a number", type(None): "null"}.get(kind, "text")
