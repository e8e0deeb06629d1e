import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from onelora_vision.errors import InputError
from onelora_vision.metrics.frechet import frechet_distance
from onelora_vision.metrics.generative import (
    Features,
    Protocol,
    autoencoder_floor,
    class_accuracy,
    evaluate_images,
    measure,
    weights_hash,
)


class MeanColor(Features):
    """Features: the mean of each channel. Logits: the brightest channel wins."""

    name, weights_hash, dim = "color", "none", 3
    class_names = ("red", "green", "blue")

    def __call__(self, images):
        means = images.mean((2, 3))
        return means, means


def colored(channel: int, count: int, seed: int = 0) -> torch.Tensor:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 0.3
    images[:, channel] += 0.5
    return images


def test_figures_of_right_and_of_wrong_images():
    reference = measure(MeanColor(), torch.cat([colored(0, 40), colored(2, 40)]))[0]
    images = torch.cat([colored(0, 30, seed=1), colored(2, 10, seed=1)])
    names = ["blue", "red"]
    right = evaluate_images(images, [1] * 30 + [0] * 10, names, reference, MeanColor())
    assert right["class_accuracy"] == 1.0 and set(right) == {"fd_color", "class_accuracy"}
    swapped = evaluate_images(images, [0] * 40, names, reference, MeanColor())
    assert swapped["class_accuracy"] == 0.25
    assert swapped["fd_color"] == right["fd_color"] > 0
    even = evaluate_images(
        torch.cat([colored(0, 40), colored(2, 40)]), [1] * 40 + [0] * 40, names, reference, MeanColor()
    )
    assert even["fd_color"] < 1e-9


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
    seen = []
    floor = autoencoder_floor(vae, images, reference, MeanColor(), batch_size=8, on_batch=seen.append)
    assert floor == pytest.approx(expected, rel=1e-4) and floor > 0
    assert seen == [8, 8, 4]


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
    vae="embedded",
    seed=0,
    ema=False,
    features="embedded",
    weights_hash="0123456789ab",
)


def test_the_protocol_line_holds_every_field():
    line = PROTOCOL.line()
    assert "\n" not in line
    assert all(f"{name}={value}" in line for name, value in dataclasses.asdict(PROTOCOL).items())


def test_unlike_protocols_are_not_compared():
    PROTOCOL.require_comparable(dataclasses.replace(PROTOCOL, seed=1))
    with pytest.raises(InputError, match=r"steps 20 and 50; guidance 1\.5 and 4\.0"):
        PROTOCOL.require_comparable(dataclasses.replace(PROTOCOL, steps=50, guidance=4.0))
