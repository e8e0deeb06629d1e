"""``onelora COMMAND …``: finds the subcommand, runs it, prints its result for people or as JSON.

A subcommand is a module with ``add_arguments(parser)``, ``run(args) -> result`` (plain lists, dicts, numbers) and
``show(result, args)``, which prints the result as text; ``exit_code(result)`` where success is not the only outcome.
A name that is a Python keyword has its module under the name with an underscore (``import_``).
"""

import argparse
import importlib
import json
import keyword
import sys

from onelora_vision.errors import InputError, nearest, printable
from onelora_vision.runtime.command import Parser, exits_cleanly

COMMANDS = {
    "params": "count the parameters of a method on a backbone, without its weights",
    "plan": "memory of a training step by part, and the largest batch that fits",
    "inspect": "what an adapter file holds: method, base, classes, metrics, norms per layer",
    "doctor": "what is wrong with an adapter file; exit code 2 if anything is",
    "export": "an adapter for PEFT, diffusers or ComfyUI, or merged; reloaded and compared before it counts",
    "import": "a rank-1 LoRA whose A is constant, back as a 1LoRA adapter",
    "card": "rewrite an adapter folder's README.md, with licence, data and pictures",
    "push": "upload an adapter folder to the Hugging Face hub",
    "sample": "images of an adapter's classes, as PNG files, a grid and an npz file",
    "predict": "classes, or depth, of pictures with an adapter",
    "fid": "FID, KID, precision and recall of two sets of images; or two runs compared",
    "convert": "an original DiT checkpoint as a pipeline folder to fine-tune, and back",
    "blend": "a weighted sum of adapters of one base, as an adapter of the same size",
}


@exits_cleanly
def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; exit code 0 on success, 2 on bad input with one line on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = argv
    if name == "--version":
        from importlib.metadata import version

        print(f"onelora_vision {version('onelora_vision')}")
        return 0
    if name not in COMMANDS:
        raise InputError(f"no command {name!r}{nearest(name, COMMANDS, 'command')}")
    module_name = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
    module = importlib.import_module(f"onelora_vision.cli.{module_name}")
    formatter = argparse.RawDescriptionHelpFormatter  # which keeps the lines of examples
    parser = Parser(prog=f"onelora {name}", description=COMMANDS[name], allow_abbrev=False, formatter_class=formatter)
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
    """A result whose texts, which may be out of files, hold nothing that a terminal would obey."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_shown(key): _shown(inner) for key, inner in value.items()}
    return type(value)(map(_shown, value)) if isinstance(value, (list, tuple)) else value


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: onelora COMMAND [--json] …", "", "commands:", *lines, "", "onelora COMMAND --help"])
