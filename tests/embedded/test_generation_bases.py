"""The shipped generation bases keep what the default job of train_dit.py stands on."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline
from safetensors import safe_open

from onelora_vision import embedded
from onelora_vision.backbones.dit import DiTBase
from onelora_vision.data.synthetic.digits import HandwrittenDigits
from onelora_vision.data.synthetic.glyphs import CLASS_NAMES, render_glyphs
from onelora_vision.diffusion.sampling import sample
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.metrics.frechet import frechet_distance
from onelora_vision.metrics.generative import EmbeddedFeatures, autoencoder_floor, class_accuracy, measure


@pytest.fixture(scope="module")
def vae():
    return AutoencoderKL.from_pretrained(embedded.DIT / "vae", torch_dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def handwriting():
    return HandwrittenDigits("test")


def test_the_weights_are_small_and_fp16():
    folders = embedded.DIT, embedded.SIT, embedded.FEATURES
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8e6
    weights = [file for file in files if file.suffix == ".safetensors"]
    assert len(weights) == 4
    for file in weights:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_slice(name).get_dtype() for name in tensors.keys()} == {"F16"}  # noqa: SIM118


def test_stock_diffusers_reads_the_pipeline():
    pipeline = DiTPipeline.from_pretrained(embedded.DIT)
    index = json.loads((embedded.DIT / "model_index.json").read_text())
    assert index["id2label"] == {str(i): name for i, name in enumerate(CLASS_NAMES)}
    assert pipeline.labels["7"] == 7 and pipeline.labels["Z"] == 35
    assert pipeline.transformer.config.out_channels == pipeline.transformer.config.in_channels == 4


def test_the_classifier_reads_unseen_handwriting_and_print(handwriting):
    features = EmbeddedFeatures()
    logits = measure(features, handwriting.images())[1]
    digits = handwriting.class_names
    assert class_accuracy(logits, handwriting.labels, digits, features.class_names) >= 0.97
    labels = torch.arange(180) % 36
    logits = measure(features, render_glyphs(labels, range(10_000, 10_180)))[1]
    assert class_accuracy(logits, labels, CLASS_NAMES, features.class_names) >= 0.85


@torch.no_grad()
def test_the_autoencoder_keeps_handwriting_and_its_latents_have_unit_size(vae, handwriting):
    images = handwriting.images()[:200]
    decoded = (vae(images * 2 - 1).sample / 2 + 0.5).clamp(0, 1)
    assert -10 * (decoded - images).square().mean().log10() > 28  # dB
    features = EmbeddedFeatures()
    whole = handwriting.images()
    reference = measure(features, whole)[0]
    printed = measure(features, render_glyphs(torch.arange(300) % 10, range(300)))[0]
    assert autoencoder_floor(vae, whole, reference, features) < 0.05 * frechet_distance(printed, reference)
    glyphs = render_glyphs(torch.arange(180) % 36, range(180))
    latents = vae.encode(glyphs * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    assert latents.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("name", "predicts"), [("embedded", "epsilon"), ("embedded/sit", "velocity, image at t=1")])
def test_samples_show_the_class_that_was_asked_for(name, predicts):
    base = DiTBase.load(name)
    assert base.class_names == CLASS_NAMES and str(base.objective) == predicts
    labels = list(range(36))
    settings = SamplingSettings(steps=12, guidance_scale=2.0)
    images = sample(base.model, base.vae, base.schedule, labels, range(36), settings)
    features = EmbeddedFeatures()
    logits = measure(features, images)[1]
    assert class_accuracy(logits, labels, CLASS_NAMES, features.class_names) >= 0.75
