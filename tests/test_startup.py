"""What starting up leaves unimported, and that the methods are registered in PEFT all the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import onelora_vision
from onelora_vision.metrics.dinov2 import MODEL
from onelora_vision.training import sampling_options

ROOT = Path(__file__).parents[1]
SLOW = {"torch", "numpy", "peft", "transformers", "diffusers", "timm", "accelerate", "matplotlib", "sklearn"}


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        ["onelora", "--help"],
        ["onelora", "params", "--help"],
        ["onelora", "plan", "--help"],
        ["onelora", "runs", "--help"],
        ["train_scripts/train_dit.py", "--help"],
        ["train_scripts/train_classification.py", "--help"],
        ["train_scripts/train_depth.py", "--help"],
        ["train_scripts/train_language.py", "--help"],
        ["train_scripts/train_depth.py", "--version"],
    ],
    ids=" ".join,
)
def test_help_imports_nothing_slow(command):
    start = (
        "from onelora_vision.cli import main; main()"
        if command[0] == "onelora"
        else f"import runpy; runpy.run_path({command[0]!r}, run_name='__main__')"
    )
    code = f"""
import json, sys
sys.argv = {command}
try:
    {start}
except SystemExit as stop:
    assert stop.code == 0
print(json.dumps(sorted({SLOW} & set(sys.modules))))
"""
    assert json.loads(run(code)) == []


def test_the_command_can_be_run_as_a_module():
    done = subprocess.run([sys.executable, "-m", "onelora_vision.cli", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("onelora_vision ")


def test_importing_the_package_imports_nothing_slow_and_offers_all_its_names():
    assert (
        json.loads(run(f"import json, sys, onelora_vision; print(json.dumps(list({SLOW} & set(sys.modules))))")) == []
    )
    assert set(onelora_vision.__all__) <= set(dir(onelora_vision))
    assert all(getattr(onelora_vision, name) is not None for name in onelora_vision.__all__)
    with pytest.raises(AttributeError, match="OneLoraConfg"):
        _ = onelora_vision.OneLoraConfg


def test_methods_are_registered_when_peft_is_imported_later():
    code = """
import importlib.util
import onelora_vision
assert importlib.util.find_spec("peft") is not None  # as transformers asks whether there is PEFT
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
import peft
assert type(peft.__spec__.loader).__module__.startswith("_frozen_importlib"), peft.__spec__.loader
print(sorted(str(kind.value) for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind in ("ONELORA", "MORA")))
"""
    assert run(code) == "['MORA', 'ONELORA']"


def test_settings_name_what_they_could_not_import():
    assert sampling_options.DINOV2 == MODEL


@pytest.mark.parametrize(
    "command",
    [
        ["train_scripts/train_dit.py", "--max_train_stps=3"],
        ["train_scripts/train_dit.py", "--method=onelroa"],
        ["train_scripts/train_dit.py", "--guidance_interval=3"],
        ["train_scripts/train_classification.py", "--freeze_norms", "--method=full+norms"],
        ["train_scripts/train_classification.py", "--rank=2"],
        ["train_scripts/train_depth.py", "--dataset_name=kity"],
        ["train_scripts/train_language.py", "--prompt_template=metamat"],
        ["train_scripts/train_depth.py", "--seed=18446744073709551616"],
        ["onelora", "params", "--backbone=dit-xl-2", "--method=onelroa"],
        ["onelora", "params", "--backbone=dit-xl-2", "--num_classes=0"],
        ["onelora", "plan", "--backbone=dit-xl-2", "--memory=24"],
        ["onelora", "plan", "--backbone=dit-xl-2", "--method=onelroa"],
        ["onelora", "export", "missing", "--to=pfet", "-o", "x"],
        ["onelora", "export", "missing", "--to=merged", "-o", "x"],
        ["onelora", "inspect", "missing"],
        ["onelora", "doctor", "missing"],
        ["onelora", "blend", "missing:1", "-o", "x"],
        ["onelora", "blend", "missing:one", "-o", "x"],
        ["onelora", "import", "missing", "-o", "x"],
        ["onelora", "card", "missing"],
        ["onelora", "push", "missing", "me/x"],
        ["onelora", "sample", "missing", "-o", "x"],
        ["onelora", "sample", "missing", "-o", "x", "--formats=pgn"],
        ["onelora", "sample", "missing", "-o", "x", "--sampler=dpm"],
        ["onelora", "predict", "--adapter=missing", "picture.png"],
        ["onelora", "fid", "missing", "other", "--features=inceptoin"],
        ["onelora", "fid", "compare", "missing", "other"],
        ["onelora", "convert", "missing", "x"],
        ["onelora", "smaple"],
        ["app", "--auth=nobody"],
        ["app", "--prot=80"],
    ],
    ids=" ".join,
)
def test_bad_input_is_refused_before_anything_slow_is_imported(command):
    start = {
        "onelora": "from onelora_vision.cli import main; main()",
        "app": "import runpy; runpy.run_module('app', run_name='__main__')",
    }.get(command[0], f"import runpy; runpy.run_path({command[0]!r}, run_name='__main__')")
    code = f"""
import contextlib, io, json, sys
sys.argv = {command}
with contextlib.redirect_stderr(io.StringIO()) as errors:
    try:
        {start}
    except SystemExit as stop:
        assert stop.code == 2, stop.code
text = errors.getvalue()
assert text.startswith("error: ") and text.count("\\n") == 1, text
print(json.dumps(sorted({SLOW} & set(sys.modules))))
"""
    assert json.loads(run(code)) == []


def test_a_run_says_what_it_will_do_before_anything_slow_is_imported():
    code = f"""
import builtins, json, runpy, sys
sys.argv = ["train_scripts/train_dit.py", "--method=lora", "--seed=3", "--output_dir=out"]
imported = builtins.__import__

def stop_at_torch(name, *rest):
    if name in {SLOW}:
        raise SystemExit(7)
    return imported(name, *rest)

builtins.__import__ = stop_at_torch
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert stop.code == 7
"""
    assert run(code) == "lora on embedded with embedded, seed 3, into out"
