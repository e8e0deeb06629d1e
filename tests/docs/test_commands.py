"""Every command in README and docs is one that exists, with flags that exist; those that need nothing are run."""

import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import timm
import torch
from code_blocks import BLOCKS, NEEDS, PAGES, ROOT, outside_blocks

from onelora_vision.adapters.file import save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.vit import vit_adaptation
from onelora_vision.cli import main as onelora
from onelora_vision.cli import sweep
from onelora_vision.cli.main import COMMANDS
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method
from onelora_vision.training.command_line import parse_config
from onelora_vision.training.config import TrainingConfig

SCRIPTS = ("train_classification", "train_depth", "train_dit", "train_language")
OTHER_PROGRAMS = [
    path
    for pattern in (
        "train_scripts/pre*.py",
        "benchmarks/*.py",
        "app/*.py",
        "tests/reliability/*.py",
        "tests/rehearsal/*.py",
    )
    for path in ROOT.glob(pattern)
]
COMMAND = re.compile(r"\s*(\$ )?(onelora|(\S*/)?python3?|(\S*/)?pip|accelerate|torchrun|make|zensical) ")
BASH = [block for block in BLOCKS if block.language == "bash"]
RUN_BY_CI = ("pytest", "venv", "pip")
# The block that CI runs as it stands.
README_TESTS = re.search(r"<!-- tests -->\n```bash\n(.*?)\n```", PAGES[0].read_text(), re.DOTALL)[1]


class Parsed(BaseException):
    """A program has read its command line without complaint, and must do no more."""


@pytest.fixture
def only_parsing(monkeypatch):
    """argparse programs stop when their command line has been read."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    return monkeypatch


def commands_of(text):
    """The simple commands of a shell text, each as its words, without redirections and settings of variables."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if word in ("&&", "||", ";", "|", "&"):
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield words
                words = []
            elif word not in (">", "<", ">>"):
                words.append(word)


def config_of(script):
    """The config class of a training script."""
    classes = [c for c in vars(script).values() if isinstance(c, type) and issubclass(c, TrainingConfig)]
    return next(c for c in classes if c.__module__ == script.__name__)


def check(words, page, patch):
    """Refuse a command that does not exist or whose flags are wrong."""
    program, arguments = Path(words[0]).name, words[1:]
    if program == "nice":
        check(arguments[2:], page, patch)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        assert arguments[0] == "launch"
        args = launch_command_parser().parse_known_args(arguments[1:])[0]
        check_script(args.training_script, args.training_script_args, page, patch)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        args = get_args_parser().parse_known_args(arguments)[0]
        check_script(args.training_script, args.training_script_args, page, patch)
    elif program == "onelora":
        check_onelora(arguments, page, patch)
    elif program in ("python", "python3") and arguments[0] == "-m":
        check_module(arguments[1], arguments[2:], patch)
    elif program in ("python", "python3"):
        check_script(arguments[0], arguments[1:], page, patch)
    elif program == "pip":
        check_pip(arguments)
    elif program == "make":
        targets = {word for word in arguments if "=" not in word}
        assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    elif program == "zensical":
        assert arguments[0] in ("build", "serve") and set(arguments[1:]) <= {"--strict"}
    else:
        assert program in ("cd", "git", "source", "docker"), f"{page.name}: unknown command {shlex.join(words)}"


def check_onelora(arguments, page, patch):
    command, *rest = arguments
    if command == "train":
        check_script(f"train_scripts/train_{rest[0]}.py", rest[1:], page, patch)
    elif command == "sweep":
        args, flags = sweep.parser().parse_known_args(rest)
        check_script(f"train_scripts/train_{args.task}.py", flags, page, patch)
    elif command == "app":
        reads_its_line("app.__main__", rest, patch)
    elif command not in ("--help", "--version", "help", "version"):
        reads_its_line("onelora_vision.cli", arguments, patch)


def check_script(name, arguments, page, patch):
    path = ROOT / name
    if path.stem in SCRIPTS:
        parse_config(config_of(importlib.import_module(f"train_scripts.{path.stem}")), arguments)
    elif path.exists() and path.parent.name == "train_scripts":
        reads_its_line(f"train_scripts.{path.stem}", arguments, patch)
    elif path.exists():
        flags = {word[2:].partition("=")[0] for word in arguments if word.startswith("--")}
        assert flags <= set(flags_in(path)), f"{page.name}: {name} has no {flags - set(flags_in(path))}"
    else:
        assert f"Save it as `{name}`" in page.read_text(), f"{page.name}: there is no {name}"


def check_module(name, arguments, patch):
    if name in RUN_BY_CI:
        assert name != "pytest" or all((ROOT / a).exists() for a in arguments if a.startswith("tests"))
        return check_pip(arguments) if name == "pip" else None
    is_package = (ROOT / name.replace(".", "/")).is_dir()
    reads_its_line(f"{name}.__main__" if is_package else name, arguments, patch)


def check_pip(arguments):
    extras = re.findall(r"^(\w+) = \[\"", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert arguments[0] == "install"
    for group in re.findall(r"\[(.*?)\]", " ".join(arguments)):
        assert set(group.split(",")) <= set(extras)


def reads_its_line(module, arguments, patch):
    """The program's own parser takes the arguments."""
    patch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed):
        importlib.import_module(module).main()


@pytest.mark.parametrize("block", BASH, ids=str)
def test_commands_exist_with_these_flags(block, only_parsing):
    only_parsing.chdir(ROOT)
    assert block.needs <= NEEDS
    commands = list(commands_of(block.text))
    assert commands
    for words in commands:
        check(words, block.page, only_parsing)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_stand_in_bash_blocks(page):
    stray = [line for line in outside_blocks(page).splitlines() if line.startswith("    ") and COMMAND.match(line)]
    others = [block for block in BLOCKS if block.page == page and block.language != "bash"]
    stray += [line for block in others for line in block.text.splitlines() if COMMAND.match(line)]
    assert not stray


@pytest.mark.parametrize("line", ["onelora prams --x", "onelora params --bakbone x", "python train_scripts/no.py"])
def test_a_wrong_command_is_found(line, only_parsing, tmp_path):
    page = tmp_path / "page.md"
    page.touch()
    with pytest.raises((AssertionError, InputError, SystemExit)):
        check(line.split(), page, only_parsing)


def flags_in(path):
    """The flags that a program's source defines."""
    return re.findall(r'add_argument\(\s*"--([\w-]+)"', path.read_text())


def known_flags():
    """Every flag of every program that the docs speak of."""
    for name in SCRIPTS:
        for field in config_of(importlib.import_module(f"train_scripts.{name}")).__dataclass_fields__:
            yield from (field, f"no_{field}")
    for name in COMMANDS:
        parser = argparse.ArgumentParser()
        module = importlib.import_module(f"onelora_vision.cli.{'import_' if name == 'import' else name}")
        if hasattr(module, "parser"):
            parser = module.parser()
        elif hasattr(module, "add_arguments"):
            module.add_arguments(parser)
        else:
            continue  # it hands its line on
        yield from (text[2:] for text in parser._option_string_actions if text.startswith("--"))
    for path in OTHER_PROGRAMS:
        yield from flags_in(path)
    from accelerate.commands.launch import launch_command_parser

    yield from (text[2:] for text in launch_command_parser()._option_string_actions)
    yield from (
        "help",
        "version",
        "json",
        "config",
        "strict",
        "index_url",
        "build_arg",
        "gpus",
        "flag",
        "no_flag",
    )  # the last two: "any flag"


def test_flags_in_the_text_exist():
    known, unknown = {flag.replace("-", "_") for flag in known_flags()}, []
    for page in PAGES:
        for flag in re.findall(r"`(?:[^`\n]* )?--([\w-]+)", outside_blocks(page)):
            if flag.replace("-", "_") not in known:
                unknown.append(f"{page.name}: --{flag}")
    assert not unknown


def test_subcommands_in_the_text_exist():
    named = {name for page in PAGES for name in re.findall(r"`onelora (\w+)", outside_blocks(page))}
    assert named and named <= set(COMMANDS)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A folder with the adapters that the examples name, of a tiny ViT."""
    folder = tmp_path_factory.mktemp("adapters")
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
    for number, name in enumerate(("pie", "sushi", "step-1000", "step-2000", "step-3000")):
        base = timm.create_model("vit_tiny_patch16_224", num_classes=2, **sizes)
        model = apply_method(base, "onelora", vit_adaptation(base))
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        info = AdapterInfo("classification", "onelora", "tiny", "0123456789abcdef", class_names=["pie", "sushi"])
        save_adapter(model, folder / name, info)
    return folder


def executed():
    """The commands of blocks without marker, each once."""
    seen = {}
    for block in BASH:
        if not block.needs and block.text != README_TESTS:
            for words in commands_of(block.text):
                seen.setdefault(json.dumps(words), str(block))
    return [pytest.param(json.loads(text), id=f"{place} {json.loads(text)[1]}") for text, place in seen.items()]


@pytest.mark.parametrize("words", executed())
def test_commands_that_need_nothing_run(words, adapters, monkeypatch, capsys):
    monkeypatch.chdir(adapters)
    program, *arguments = words
    if program == "onelora":
        run = onelora
    else:
        name, *arguments = arguments
        assert program == "python" and "--dry_run" in arguments, f"mark the block: {program} {name} does not run here"
        run = importlib.import_module(f"train_scripts.{Path(name).stem}").main
    with pytest.raises(SystemExit) as done:
        run(arguments)
    assert done.value.code == 0, capsys.readouterr().err
    assert capsys.readouterr().out
