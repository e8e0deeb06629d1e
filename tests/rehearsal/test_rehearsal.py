"""The rehearsal itself: its hub, its list of commands, how it reports, and a few of its commands at small sizes."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from published_data import DATA
from published_models import HUB, MODELS
from recipe_steps import CONFIGS, DIT, INDOOR, VIT, Step, all_steps, chosen
from rehearse import Processes, rehearse, remove_outputs, summary

FOLDER = Path(__file__).parent
IN21K = "google/vit-base-patch16-224-in21k"
#: Models of examples that no recipe uses, and names that stand for the reader's own.
NOT_REHEARSED = {"vinvino02/glpn-nyu", "embedded/sit", "vit_base_patch16_224.augreg_in21k_ft_in1k"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The hub's cache with three small models."""
    stage = tmp_path_factory.mktemp("stage")
    for name in (DIT, IN21K, INDOOR):
        MODELS[name](stage, True)
    return stage / HUB


@pytest.fixture
def offline(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_hubs_cache_is_laid_out_as_the_hubs_client_keeps_it(hub):
    folder = hub / "models--facebook--DiT-XL-2-256"
    snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text()
    files = {str(path.relative_to(snapshot)): path for path in snapshot.rglob("*.*")}
    weights = "diffusion_pytorch_model.bin"
    assert files.keys() == {
        "model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", f"transformer/{weights}",
        "vae/config.json", f"vae/{weights}",
    }  # fmt: skip
    assert all(path.is_symlink() and path.resolve().parent == folder / "blobs" for path in files.values())
    assert '"Transformer2DModel"' in files["transformer/config.json"].read_text()
    attention = {key.split(".")[-2] for key in torch.load(files[f"vae/{weights}"]) if ".attentions." in key}
    assert attention == {"group_norm", "query", "key", "value", "proj_attn"}


def test_the_published_dit_loads_without_a_word(hub, capfd):
    from onelora_vision.backbones.dit import DiTBase

    base = DiTBase.load(DIT, cache_dir=str(hub))
    assert {*base.class_names[0].split(", ")} == {"tench", "Tinca tinca"} and base.image_size == 256
    assert capfd.readouterr() == ("", "")


def test_a_classifier_without_head_loads_without_a_word_and_is_merged_with_its_processor(offline, tmp_path, capfd):
    from onelora_vision.backbones.vit import ViTBase

    base = ViTBase.load(IN21K)
    assert base.processor.size["height"] == 224
    base.save_merged(base.model, tmp_path, torch.float32, "5GB")
    assert '"size": 224' in (tmp_path / "preprocessor_config.json").read_text()
    assert capfd.readouterr() == ("", "")


def test_the_published_depth_anything_loads_without_a_word(offline, capfd):
    from onelora_vision.backbones.depth_anything import DepthAnythingBase

    assert DepthAnythingBase.load(INDOOR).max_depth == 20
    assert capfd.readouterr() == ("", "")


def test_every_recipe_is_trained_and_its_adapter_is_used():
    uses = {"dit": "sample", "classification": "predict", "depth": "predict", "language": "predict"}
    names = {step.name for step in all_steps(small=False)}
    for file in CONFIGS.rglob("*.yaml"):
        recipe = f"{file.parent.name}/{file.stem}"
        assert {f"{recipe}/{what}" for what in ("train", "doctor", "inspect", uses[file.parent.name])} <= names


@pytest.mark.parametrize("small", [True, False])
def test_steps_can_run_in_their_order(small):
    steps, done = all_steps(small), set()
    assert max(Counter(step.name for step in steps).values()) == 1
    for step in steps:
        assert set(step.after) <= done and set(step.needs) <= {*MODELS, *DATA}, step.name
        done.add(step.name)
    assert done == {step.name for step in all_steps(not small)}


def test_models_of_documented_commands_are_rehearsed(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER.parent / "docs")
    from code_blocks import BLOCKS

    text = "\n".join(block.text for block in BLOCKS if block.language == "bash")
    named = set(re.findall(r"--(?:pretrained_model_name_or_path|vae) +([\w-]+/[\w.-]+|vit_[\w.]+)", text))
    made = {step.makes for step in all_steps(small=False)}
    assert named - NOT_REHEARSED - made <= set(MODELS) and {DIT, VIT} <= named


def test_a_pattern_brings_what_its_steps_need():
    steps = all_steps(small=True)
    assert [step.name for step in chosen(steps, "dit/food101-sit-xl2-lora/sample")] == [
        "convert/sit/forth", "dit/food101-sit-xl2-lora/train", "dit/food101-sit-xl2-lora/sample",
    ]  # fmt: skip
    assert len(chosen(steps, "*/predict")) == 2 * sum(step.name.endswith("/predict") for step in steps)
    assert chosen(steps, "nothing") == []


def test_failures_noise_and_what_is_left_out_are_reported(tmp_path, capsys):
    def python(name, code, *after, makes=None):
        return Step(name, (sys.executable, "-S", "-c", code), after=after, makes=makes)

    steps = [
        python("a/good", "open('made', 'w'); print('x.py:1: FutureWarning: soon')", makes="made"),
        python("a/bad", "assert open('made').read() == ''; print('the reason'); raise SystemExit(3)", "a/good"),
        python("a/after", "open('never', 'w')", "a/bad"),
    ]
    outcomes = rehearse(steps, Processes(tmp_path), small=True, keep=False)
    assert [outcome.code for outcome in outcomes] == [0, 3] and outcomes[0].memory > 2**20
    printed = capsys.readouterr().out
    assert "~ x.py:1: FutureWarning: soon" in printed and "| the reason" in printed and "left out: a/after" in printed
    assert not (tmp_path / "made").exists() and not (tmp_path / "never").exists()
    assert "2 of 3 commands run, 1 failed, 1 with lines of libraries" in summary(outcomes, steps)


def test_a_base_stays_while_an_adapter_of_it_is_used(tmp_path):
    base, trained = Step("base", (), makes="base"), Step("train", (), after=("base",), makes="adapter")
    sampled = Step("sample", (), after=("train",))
    for name in ("base", "adapter"):
        (tmp_path / name).mkdir()
    remove_outputs([base, trained], [sampled], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}
    remove_outputs([base, trained, sampled], [], tmp_path)
    assert not [*tmp_path.iterdir()]


def run(*arguments):
    command = [sys.executable, str(FOLDER / "rehearse.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_wrong_pattern_is_refused():
    ended = run("--only", "dit/food102")
    assert ended.returncode == 2 and "no step matches 'dit/food102'" in ended.stderr


def test_some_commands_of_the_small_rehearsal():
    ended = run("--small", "--only", "convert/dit/back")
    assert ended.returncode == 0, ended.stdout
    assert "2 of 2 commands run, 0 failed, 0 with lines of libraries" in ended.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_small_rehearsal():
    ended = run("--small")
    assert ended.returncode == 0 and ", 0 with lines of libraries" in ended.stdout, ended.stdout
