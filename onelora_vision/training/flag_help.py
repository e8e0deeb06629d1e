"""The ``--help`` of training scripts: the most important flags first, then all others in groups."""

import dataclasses
import os
import shutil
import sys
import textwrap
import typing
from typing import Literal

from onelora_vision.training.config import TrainingConfig

#: Flags of the first group, if a script has them.
ESSENTIAL = (
    "pretrained_model_name_or_path",
    "dataset_name",
    "data_dir",
    "train_data_dir",
    "method",
    "rank",
    "max_train_steps",
    "learning_rate",
    "train_batch_size",
    "output_dir",
    "seed",
    "resume_from_checkpoint",
    "dry_run",
)
#: Titles of the other groups, in order; fields that a config adds outside its option classes are in the last one.
GROUPS = (
    "data",
    "model and method",
    "optimization",
    "evaluation",
    "output, checkpoints and logs",
    "hardware",
    "other",
)
_INDENT = 26


def help_text(config_class: type[TrainingConfig], description: str) -> str:
    """The help of a script: description, flags with defaults, then the part of the description from "Examples:" on."""
    about, _, examples = description.partition("\nExamples:\n")
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    lines = [f"usage: {os.path.basename(sys.argv[0])} [--config FILE] [--FLAG VALUE ...]", "", about.strip()]
    for title, fields in grouped(config_class).items():
        lines += ["", f"{title}:"]
        if title == "most used":
            lines += _entry("--config FILE", "YAML file of settings; flags override it", width)
        types = typing.get_type_hints(config_class)
        for field in fields:
            lines += _entry(_flag(field, types[field.name]), _with_default(field), width)
    lines += ["", "- and _ are the same in flags."]
    if examples:
        lines += ["", "examples:", examples.rstrip()]
    return "\n".join(lines) + "\n"


def grouped(config_class: type[TrainingConfig]) -> dict[str, list[dataclasses.Field]]:
    """The config's fields by the title of their group: "most used", then `GROUPS`; empty groups are omitted."""
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    groups = {"most used": [fields.pop(name) for name in ESSENTIAL if name in fields]}
    groups |= {title: [] for title in GROUPS}
    # In each group, a script's own flags come before those shared by all scripts.
    for part in config_class.__mro__:
        for name in vars(part).get("__annotations__", ()):
            if name in fields and _first_definer(config_class, name) is part:
                title = GROUPS[-1] if issubclass(part, TrainingConfig) else part.group
                groups[title].append(fields.pop(name))
    return {title: members for title, members in groups.items() if members}


def _first_definer(config_class: type, name: str) -> type:
    """The class that introduces a field; its subclasses may only change the default."""
    return [part for part in config_class.__mro__ if name in vars(part).get("__annotations__", ())][-1]


def _flag(field: dataclasses.Field, kind) -> str:
    if kind is bool:
        return f"--[no_]{field.name}" if field.default else f"--{field.name}"
    return f"--{field.name} {_placeholder(kind)}"


def _placeholder(kind) -> str:
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    kinds = [part for part in typing.get_args(kind) or (kind,) if part is not type(None)]
    if len(kinds) == 1 and kinds[0] is not kind:
        return _placeholder(kinds[0])
    return {int: "N", float: "X", str: "TEXT"}.get(kinds[0] if len(kinds) == 1 else str, "VALUE")


def _with_default(field: dataclasses.Field) -> str:
    text, default = field.metadata.get("help", ""), field.default
    if "(default" in text:
        return text
    shown = (
        {True: "on", False: "off"}[default] if isinstance(default, bool) else "none" if default is None else default
    )
    return f"{text} (default: {shown})"


def _entry(flag: str, text: str, width: int) -> list[str]:
    """A flag and its help text, which starts on the next line if the flag is long."""
    lines = textwrap.wrap(text, width - _INDENT)
    first = f"  {flag}"
    if len(first) > _INDENT - 2:
        return [first, *(" " * _INDENT + line for line in lines)]
    return [first.ljust(_INDENT) + lines[0], *(" " * _INDENT + line for line in lines[1:])]
