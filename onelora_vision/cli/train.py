"""``onelora train TASK …``: run a training script, with all of its flags."""

import runpy
import sys

from onelora_vision.errors import InputError, nearest

SCRIPTS = {
    "dit": "class-conditional generation with a DiT",
    "classification": "image classification with a ViT",
    "depth": "metric depth with Depth Anything or DPT",
    "language": "questions and answers with LLaMA or another decoder",
}


def main(argv: list[str]) -> int:
    """Run a script like ``python train_scripts/train_TASK.py``, which exits the process itself."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *flags = argv
    if name not in SCRIPTS:
        raise InputError(f"no task {name!r} to train{nearest(name, SCRIPTS, 'task')}")
    module = f"onelora_vision.train_scripts.train_{name}"
    sys.argv = [f"onelora train {name}", *flags]
    runpy.run_module(module, run_name="__main__")
    return 0


def _overview() -> str:
    width = max(map(len, SCRIPTS))
    lines = [f"  {name:<{width}}  {text}" for name, text in SCRIPTS.items()]
    usage = "usage: onelora train TASK [--config RECIPE] [--output_dir DIR] [--method METHOD] …"
    more = "Without flags, a task runs its built-in job in a few minutes. Flags: onelora train TASK --help"
    return "\n".join([usage, "", "tasks:", *lines, "", more])
