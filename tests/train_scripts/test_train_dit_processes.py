"""train_dit on two processes: the losses and the measured images are those of one."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from processes import run_together
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """An image folder with a train and a test split of two classes, and the weights of a small feature model."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 4)):
        for name in ("red", "green"):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 255, (20, 22, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0, img_size=224).state_dict(), root / "vit.safetensors")
    return root


CHANGED_LOSS = {"guidance_distillation": 1.5, "snr_gamma": 5, "timestep_sampling": "logit_normal"}


def launch(processes: int, dit_folder, pictures, output, **changed):
    flags = {
        "pretrained_model_name_or_path": dit_folder,
        "dataset_name": "imagefolder",
        "data_dir": pictures,
        "output_dir": output,
        "latents_dir": output.parent / f"latents-{processes}",
        "cache_latents": "true",
        "random_flip": "true",
        "max_train_steps": 3,
        "lr_warmup_steps": 0,
        "train_batch_size": 4 // processes,
        "checkpointing_steps": 3,
        "num_inference_steps": 2,
        "num_validation_images": 0,
        "fid_features": "dinov2",
        "fid_weights": pictures / "vit.safetensors",
        "fid_timm_model": "test_vit",
        "fid_num_samples": 7,
        "eval_batch_size": 3,
        "report_to": "none",
        **changed,
    }
    command = [
        ROOT / "train_scripts/train_dit.py",
        *(f"--{name}={value}" for name, value in flags.items()),
    ]
    # Each run has a cache of its own, so that both measure the real images themselves.
    cache = output.parent / f"cache-{processes}"
    assert [code for code, _ in run_together(command, processes, XDG_CACHE_HOME=str(cache))] == [0] * processes
    state = torch.load(output / "checkpoint-3" / "training_state.pt", weights_only=True)
    (reference,) = (cache / "onelora_vision" / "references").iterdir()
    results = json.loads((output / "results.json").read_text())
    return state["progress"]["history"], results, load_file(reference)["features"]


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, CHANGED_LOSS, {"quantize": "int8"}], ids=["plain", "changed loss", "8 bits"])
def test_two_processes_do_what_one_does(dit_folder, pictures, tmp_path, changed):
    history, results, reference = launch(1, dit_folder, pictures, tmp_path / "one", **changed)
    history2, results2, reference2 = launch(2, dit_folder, pictures, tmp_path / "two", **changed)
    for name in ("loss", "mse", "vlb", "grad_norm"):
        assert history2[name] == pytest.approx(history[name], rel=1e-4), name
    torch.testing.assert_close(reference2, reference, rtol=1e-4, atol=1e-4)
    assert len(reference) == 8 and results2["protocol"] == results["protocol"]
    before, before2 = results["metrics"]["before"], results2["metrics"]["before"]
    assert {"fd_dinov2", "kid_dinov2", "coverage_dinov2"} <= before.keys()
    assert before2 == pytest.approx(before, rel=1e-3, abs=1e-4)
