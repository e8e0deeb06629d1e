"""``onelora COMMAND …``: find and run a subcommand, and print its result as text or JSON.

A subcommand is a module with ``add_arguments(parser)``, ``run(args) -> result`` (plain lists, dicts, numbers) and
``show(result, args)``, which prints the result as text. It can also have ``exit_code(result)``, if there are other
outcomes than success. Alternatively, it only has ``main(argv)``, which does everything. If the name is a Python
keyword, the module's name ends in an underscore (``import_``).
"""

import importlib
import json
import keyword
import sys
from importlib.metadata import version
from typing import NamedTuple

from onelora_vision.errors import InputError, nearest, printable
from onelora_vision.runtime.command import Parser, exits_cleanly


class Command(NamedTuple):
    """The entry of a command in ``onelora --help``: its group, what it does, and an example."""

    group: str
    does: str
    example: str


_GROUPS = ("train", "use", "convert", "measure", "share")
COMMANDS = {
    "train": Command("train", "fine-tune a model: dit, classification, depth, language", "train dit --output_dir out"),
    "sweep": Command(
        "train",
        "compare methods at their own best learning rates, with several seeds",
        "sweep classification --methods onelora,lora,lokr",
    ),
    "recipes": Command("train", "settings of published experiments, for train --config", "recipes dit"),
    "params": Command(
        "train",
        "count the parameters of a method on a backbone, without its weights",
        "params --backbone dit-xl-2 --method onelora,lora",
    ),
    "plan": Command(
        "train",
        "memory of a training step by part, and the largest batch that fits",
        "plan --backbone dit-xl-2 --method onelora --memory 24GB",
    ),
    "app": Command("use", "the studio in the browser: draw, blend and compare", "app --adapters out"),
    "sample": Command("use", "images of an adapter's classes, as files and a grid", "sample out/adapter -o images"),
    "predict": Command(
        "use", "classes or depth of pictures, or answers to questions", "predict --adapter out/adapter picture.jpg"
    ),
    "blend": Command(
        "use", "a weighted sum of adapters of one base, as an adapter of the same size", "blend a:0.7 b:0.3 -o both"
    ),
    "export": Command(
        "convert",
        "export an adapter for PEFT, diffusers or ComfyUI, or merged; verified by reloading it",
        "export out/adapter --to peft-miss -o miss",
    ),
    "import": Command("convert", "import a rank-1 LoRA with constant A, or MiSS, as 1LoRA", "import miss -o again"),
    "convert": Command(
        "convert", "convert an original DiT checkpoint to a pipeline, and back", "convert DiT-XL-2-256x256.pt dit"
    ),
    "runs": Command(
        "measure", "list all runs in a folder, best first, as a table or a page", "runs output --html runs.html"
    ),
    "inspect": Command(
        "measure", "what an adapter file holds: method, base, classes, metrics, norms per layer", "inspect out/adapter"
    ),
    "doctor": Command(
        "measure", "check an adapter file for problems; exit code 2 if there are any", "doctor out/adapter"
    ),
    "fid": Command(
        "measure", "FID, KID, precision and recall of two sets of images, or compare two runs", "fid real drawn"
    ),
    "card": Command(
        "share",
        "rewrite an adapter folder's README.md, with licence, data and pictures",
        "card out/adapter --license mit",
    ),
    "push": Command("share", "upload an adapter folder to the Hugging Face hub", "push out/adapter me/handwriting"),
}


@exits_cleanly
def main(argv: list[str] | None = None) -> int:
    """Run a subcommand. Return exit code 0 on success, 2 on bad input with one line on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["help"]:
        argv = [*argv[1:3], "--help"] if argv[1:2] == ["train"] else [*argv[1:2], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = argv
    if name in ("--version", "version"):
        print(f"onelora_vision {version('onelora_vision')}")
        return 0
    if name not in COMMANDS:
        raise InputError(f"no command {name!r}{nearest(name, COMMANDS, 'command')} (onelora --help)")
    module_name = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
    module = importlib.import_module(f"onelora_vision.cli.{module_name}")
    if hasattr(module, "main"):
        return module.main(rest)
    command = COMMANDS[name]
    description = f"{command.does[0].upper()}{command.does[1:]}.\n\nexample: onelora {command.example}"
    parser = Parser(prog=f"onelora {name}", description=description, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    module.add_arguments(parser)
    args = parser.parse_args(rest)
    result = module.run(args)
    if args.json:
        text = json.dumps(result, indent=2, ensure_ascii=False)
        print("".join(c if c.isprintable() or c == "\n" else f"\\u{ord(c):04x}" for c in text))
    else:
        module.show(_shown(result), args)
    return module.exit_code(result) if hasattr(module, "exit_code") else 0


def _shown(value):
    """Escape a result's strings, which may come from files, so they cannot control the terminal."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(inner) for key, inner in value.items()}
    return type(value)(map(_shown, value)) if isinstance(value, (list, tuple)) else value


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: onelora COMMAND …"]
    for group in _GROUPS:
        lines += ["", f"{group}:"]
        for name, command in COMMANDS.items():
            if command.group == group:
                lines += [f"  {name:<{width}}  {command.does}", f"  {'':<{width}}    onelora {command.example}"]
    return "\n".join([*lines, "", "onelora help COMMAND shows the flags of one; --json prints data as JSON."])
