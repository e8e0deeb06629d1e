import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from onelora_vision.errors import InputError
from onelora_vision.metrics.frechet import frechet_distance
from onelora_vision.metrics.generative import (
    Features,
    FeatureSet,
    Protocol,
    autoencoder_floor,
    class_accuracy,
    collect,
    compare,
    measure,
    weights_hash,
)


class MeanColor(Features):
    """Features: the mean of each channel. Logits: the brightest channel wins."""

    name, weights_hash, dim = "color", "none", 3
    class_names = ("red", "green", "blue")

    def __call__(self, images):
        means = images.mean((2, 3))
        return FeatureSet(means, means)


def colored(channel: int, count: int, seed: int = 0) -> torch.Tensor:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.3
    images[:, channel] += 0.5
    return images


def test_figures_of_like_and_of_unlike_images():
    reference = collect(MeanColor(), [colored(0, 40), colored(2, 40)])
    same = compare(reference, reference, "color")
    other = compare(collect(MeanColor(), [colored(1, 60, seed=1)]), reference, "color")
    names = {f"{kind}_color" for kind in ("fd", "kid", "precision", "recall", "density", "coverage")} | {
        "kid_color_std"
    }
    assert set(same) == set(other) == names
    assert same["fd_color"] < 1e-9 and other["fd_color"] > 0.1
    assert same["kid_color"] < 0.01 < other["kid_color"]
    assert same["precision_color"] == same["recall_color"] == same["coverage_color"] == 1
    assert other["precision_color"] == other["recall_color"] == other["coverage_color"] == other["density_color"] == 0
    few = compare(collect(MeanColor(), [colored(0, 6)]), reference, "color")
    assert set(few) == {"fd_color", "kid_color", "kid_color_std"}


def test_features_of_several_processes_come_in_the_images_order():
    images = torch.rand(7, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = collect(MeanColor(), images.split(2))
    parts = [collect(MeanColor(), images[rank::3].split(2)) for rank in range(3)]
    joined = FeatureSet.interleaved(parts)
    assert torch.equal(joined.features, whole.features) and torch.equal(joined.logits, whole.logits)
    empty = collect(MeanColor(), images[7:].split(2))
    assert len(FeatureSet.interleaved([collect(MeanColor(), [images[:1]]), empty])) == 1


def test_only_the_classes_asked_for_compete():
    logits = torch.tensor([[0.0, 9.0, 1.0], [2.0, 9.0, 1.0]])
    assert class_accuracy(logits, [1, 0], ["red", "blue"], MeanColor.class_names) == 1.0
    with pytest.raises(InputError, match="pink"):
        class_accuracy(logits, [0, 0], ["pink"], MeanColor.class_names)


def test_measuring_does_not_depend_on_the_batch_size():
    images = torch.rand(25, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    whole, logits = measure(MeanColor(), images)
    parts, part_logits = measure(MeanColor(), images, batch_size=7)
    torch.testing.assert_close(whole.scatter, parts.scatter)
    assert torch.equal(logits, part_logits)


def test_the_floor_is_the_distance_that_the_autoencoder_makes():
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, latent_channels=4).eval()
    images = colored(1, 20)
    reference = measure(MeanColor(), images)[0]
    with torch.no_grad():
        decoded = (vae(images * 2 - 1).sample / 2 + 0.5).clamp(0, 1)
    expected = frechet_distance(measure(MeanColor(), decoded)[0], reference)
    floor = autoencoder_floor(vae, images, reference, MeanColor(), batch_size=8)
    assert floor == pytest.approx(expected, rel=1e-4) and floor > 0


def test_the_hash_is_of_the_weights():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    before = weights_hash(model)
    assert len(before) == 12 and weights_hash(model) == before
    model.bias.data[0] += 1e-3
    assert weights_hash(model) != before


PROTOCOL = Protocol(
    generated=500,
    reference=450,
    split="test",
    crop="none",
    resize="none",
    sampler="dpm++",
    steps=20,
    guidance=1.5,
    guidance_channels="all",
    guidance_interval="0,1",
    precision="fp32",
    vae="ba9876543210",
    seed=0,
    ema=False,
    features="embedded",
    weights_hash="0123456789ab",
)


def test_the_protocol_line_holds_every_field():
    guided = dataclasses.replace(PROTOCOL, guidance_base=True, guidance_distillation=1.5, stock_numerics=True)
    line = guided.line()
    assert "\n" not in line
    assert all(f"{name}={value}" in line for name, value in dataclasses.asdict(guided).items())
    named = "guidance_base=True guidance_distillation=1.5 stock_numerics=True"
    assert line == f"{PROTOCOL.line()} {named}"  # as before there was any


def test_the_line_is_read_back():
    assert Protocol.parse(PROTOCOL.line()) == PROTOCOL
    odd = dataclasses.replace(PROTOCOL, split="my steps=3 photos/test", ema=True)
    assert Protocol.parse(odd.line()) == odd
    for fields in (
        {"guidance_base": True},
        {"guidance_distillation": 1.5},
        {"stock_numerics": True},
        {"split": "a guidance_base=True/test"},
    ):
        guided = dataclasses.replace(odd, **fields)
        assert Protocol.parse(guided.line()) == guided
    with pytest.raises(InputError, match="not a protocol"):
        Protocol.parse("not measured")
    with pytest.raises(InputError, match="damaged"):
        Protocol.parse(PROTOCOL.line().replace("steps=20", "steps=many"))


def test_unlike_protocols_are_not_compared():
    PROTOCOL.require_comparable(dataclasses.replace(PROTOCOL, seed=1))
    with pytest.raises(InputError, match=r"steps 20 and 50; guidance 1\.5 and 4\.0"):
        PROTOCOL.require_comparable(dataclasses.replace(PROTOCOL, steps=50, guidance=4.0))
    with pytest.raises(InputError, match="guidance_base False and True"):
        PROTOCOL.require_comparable(dataclasses.replace(PROTOCOL, guidance_base=True))
    with pytest.raises(InputError, match=r"guidance_distillation 1\.5 and 1\.0"):
        dataclasses.replace(PROTOCOL, guidance_distillation=1.5).require_comparable(PROTOCOL)
