from pathlib import Path

import pytest

from onelora_vision.diffusion.settings import SAMPLERS
from onelora_vision.methods.names import METHODS
from onelora_vision.training.command_line import parse_config
from train_scripts.train_dit import DiTConfig

SIT = ("onelora", "lora", "full")
FOLDER = Path(__file__).parents[2] / "train_scripts" / "configs" / "dit"


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.peft is None])
def test_every_method_has_a_recipe_that_differs_in_what_it_must_alone(method):
    config = parse_config(DiTConfig, ["--config", str(FOLDER / f"food101-xl2-{method}.yaml")])
    assert (config.method, config.output_dir) == (method, f"output/dit-food101-{method}")
    assert config.learning_rate == config.head_learning_rate == (1e-4 if method == "full" else 1e-3)
    assert config.swept_scales() == (1.0, 1.5, 2.0) and config.cache_latents
    other = parse_config(DiTConfig, ["--config", str(FOLDER / "food101-xl2-onelora.yaml")])
    changed = {name for name, value in vars(config).items() if value != vars(other)[name]}
    assert changed <= {"method", "output_dir", "learning_rate", "head_learning_rate"}


@pytest.mark.parametrize("method", SIT)
def test_sits_recipes_differ_from_dits_in_the_base_and_its_sampler_alone(method):
    config, other = (
        parse_config(DiTConfig, ["--config", str(FOLDER / f"food101-{kind}xl2-{method}.yaml")])
        for kind in ("sit-", "")
    )
    assert config.pretrained_model_name_or_path == "base/sit-xl-2" and config.sampler in SAMPLERS["velocity"]
    changed = {name for name, value in vars(config).items() if value != vars(other)[name]}
    assert changed == {"pretrained_model_name_or_path", "sampler", "output_dir"}
