"""Who may import whom; and what importing the package leaves unimported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the bottom up: a part of the package imports only from parts on lines above its own.
LAYERS = [
    {"errors", "seeding", "embedded", "registration", "compressions"},
    {"storage", "runtime", "diffusion", "tuners"},
    {"plots", "backbones", "data"},
    {"methods", "metrics"},
    {"adapters", "budget"},
    {"inference"},
    {"tasks"},
    {"training"},
    {"sweep"},
]
PLACE = {part: number for number, layer in enumerate(LAYERS) for part in layer}


def imports(path):
    """Dotted names that a file imports, at any depth of its code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def part_of(name):
    """The part of the package (``tuners``, ``methods``) that a dotted name belongs to, or None."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "onelora_vision" and len(pieces) > 1 else None


FILES = sorted((ROOT / "onelora_vision").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    part = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = set(imports(path))
    assert not {name for name in found if name.split(".")[0] in ("train_scripts", "app", "benchmarks", "tests")}
    others = {part_of(name) for name in found} - {None, part}
    # A part that is not listed (the command line, the package itself) is above all: nothing listed imports it.
    assert not {other for other in others if PLACE.get(other, len(LAYERS)) >= PLACE.get(part, len(LAYERS) + 1)}


TUNERS = [f"onelora_vision.tuners.{name}" for name in ("layer", "matching", "mora", "onelora.config")]


@pytest.mark.slow
def test_what_peft_s_import_loads_can_be_imported_first():
    """Each in a fork of a process that has imported neither the package nor PEFT."""
    code = f"""
import importlib, os
import transformers
for name in {TUNERS}:
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print(name, error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not done.stdout, done.stdout


APP = sorted((ROOT / "app").rglob("*.py"))
WIDGETS = {ROOT / "app" / "ui.py", *(ROOT / "app" / "tabs").glob("*.py")}


@pytest.mark.parametrize("path", APP, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_app_imports_no_tasks_and_no_training_and_keeps_widgets_and_tensors_apart(path):
    found = set(imports(path))
    assert not {part_of(name) for name in found} & {"tasks", "training"}
    packages = {name.split(".")[0] for name in found}
    assert "train_scripts" not in packages
    if path in WIDGETS:
        assert not packages & {"torch", "numpy", "PIL", "peft", "matplotlib"}
    else:
        assert not packages & {"gradio", "gradio_client"}


def test_importing_the_package_is_light_and_registers_the_methods():
    heavy = ("diffusers", "timm", "gradio", "matplotlib", "sklearn")  # torchvision comes with peft
    code = f"""
import sys, peft
there = set(sys.modules)
assert not {{"ONELORA", "MORA"}} & set(peft.PeftType.__members__)
import onelora_vision
assert {{"ONELORA", "MORA"}} <= set(peft.PeftType.__members__)
print([name for name in {heavy} if name in set(sys.modules) - there])
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
