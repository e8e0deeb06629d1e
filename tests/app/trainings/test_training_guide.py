"""What the page trains with: the guide's numbers, and commands that the scripts take."""

import re
from pathlib import Path

import pytest

from app.trainings.guide import KINDS, MAX_STEPS, METHODS, Settings, flags_of
from onelora_vision.errors import InputError
from onelora_vision.training.command_line import parse_config
from train_scripts.train_classification import ClassificationConfig
from train_scripts.train_depth import DepthConfig
from train_scripts.train_dit import DiTConfig

CONFIGS = {"dit": DiTConfig, "classification": ClassificationConfig, "depth": DepthConfig}

GUIDE = Path(__file__).parents[3] / "docs" / "choose.md"


def test_the_rates_are_those_of_the_guide():
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|([^|]*)\|$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    guided = 0
    for choice in METHODS.values():
        for cell, rates in rows:
            names = [set(name.split()) for name in re.findall(r"`([^`]+)`", cell)]
            if {flag for flag in choice.flags if flag != "--method"} in names:
                low, high = (float(rate) for rate in (re.findall(r"\d+e-\d+", rates) * 2)[:2])
                assert low <= choice.rate <= high, choice
                guided += 1
    assert guided == len(METHODS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sends", [False, True])
def test_the_script_takes_the_flags(kind, method, sends, tmp_path):
    if sends and not KINDS[kind].takes_images:
        return
    base = "embedded/depth" if KINDS[kind].script == "depth" else "embedded"
    script, *flags = flags_of(Settings.checked(kind, method), base, tmp_path if sends else None, tmp_path / "run")
    config = parse_config(CONFIGS[script], flags)
    assert config.report_to == "jsonl" and config.max_train_steps == KINDS[kind].steps


def test_settings_are_completed_and_checked():
    kind, method = next(iter(KINDS)), next(iter(METHODS))
    found = Settings.checked(kind, method)
    assert (found.steps, found.rate) == (KINDS[kind].steps, METHODS[method].rate)
    assert Settings.of(found.as_dict()) == found
    for changes, message in (
        ({"kind": "Draw the clases"}, "did you mean 'Draw the classes'"),
        ({"method": "lora"}, "no method 'lora'"),
        ({"steps": MAX_STEPS + 1}, "train from 1 to"),
        ({"rate": -1.0}, "learning rate -1"),
        ({"seed": -1}, "seed -1"),
    ):
        with pytest.raises(InputError, match=message):
            Settings.checked(**{"kind": kind, "method": method, **changes})
