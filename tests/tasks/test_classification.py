import json

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from onelora_vision.data.stream import collate
from onelora_vision.errors import InputError
from onelora_vision.metrics.accuracy import Predictions
from onelora_vision.tasks.classification import ClassificationTask, draw_report


class Linear(torch.nn.Module):
    """Three classes from the mean of each channel."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(3))

    def forward(self, images):
        self.seen = images
        return images.mean((2, 3)) @ self.weight.T


def batch(size=4, seed=5):
    image = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    label = torch.arange(size) % 3
    return {"image": image, "label": label, "seed": torch.arange(size) + seed, "index": torch.arange(size)}


def test_loss_is_cross_entropy_with_label_smoothing():
    images = batch()
    logits = images["image"].mean((2, 3))
    for smoothing in (0.0, 0.1):
        output = ClassificationTask(Linear(), "abc", smoothing).forward(images)
        target = torch.nn.functional.one_hot(images["label"], 3) * (1 - smoothing) + smoothing / 3
        expected = -(target * logits.log_softmax(1)).sum(1).mean()
        assert output["loss"].item() == pytest.approx(expected.item(), abs=1e-6)
        assert output["accuracy"].item() == (logits.argmax(1) == images["label"]).float().mean().item()


def test_images_in_bytes_are_normalised_as_timm_does():
    from timm.data import create_transform

    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    transform = create_transform((3, 8, 8), mean=mean, std=std, crop_pct=1.0)
    pixels = torch.randint(0, 256, (4, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = [Image.fromarray(picture.numpy()) for picture in pixels]
    task = ClassificationTask(Linear(), "abc", mean=mean, std=std)
    task.forward({**batch(), "image": pixels.permute(0, 3, 1, 2)})
    assert torch.equal(task.model.seen, torch.stack([transform(picture) for picture in pictures]))


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_depends_on_the_samples_seeds_alone(alphas):
    task = ClassificationTask(Linear(), "abc", **alphas)
    images = batch()
    original = images["image"].clone()
    first = task.forward(images)["loss"]
    assert torch.equal(images["image"], original)
    assert not torch.equal(task.model.seen, original)
    torch.rand(7)
    assert torch.equal(task.forward(images)["loss"], first)
    assert not torch.equal(task.forward({**images, "seed": images["seed"] + 1})["loss"], first)


def test_mixing_needs_pairs():
    with pytest.raises(InputError, match="--train_batch_size 3 is odd"):
        ClassificationTask(Linear(), "abc", mixup=1.0).forward(batch(3))


def test_evaluation_counts_each_image_once():
    first, second = batch(4, seed=1), batch(4, seed=2)
    second["index"] = torch.tensor([4, 5, 6, 0])  # the last one is a replacement for an unreadable image
    second["image"][3], second["label"][3] = first["image"][0], first["label"][0]
    task = ClassificationTask(Linear().eval(), "abc")
    with torch.no_grad():
        figures = task.evaluate([first, second], Accelerator(cpu=True))
    logits = torch.cat([first["image"], second["image"][:3]]).mean((2, 3))
    labels = torch.cat([first["label"], second["label"][:3]])
    assert len(task.details["label"]) == 7
    assert figures["top1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert "top5" not in figures and 0 <= figures["ece"] <= 1  # of three classes
    assert figures["nll"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)


def test_outputs_of_transformers_are_understood():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3))
    task = ClassificationTask(model, "abc")
    task.forward(batch())["loss"].backward()
    assert model.classifier.weight.grad.abs().sum() > 0


def test_collated_items_are_a_batch():
    items = [{"image": torch.rand(3, 8, 8), "label": k, "seed": 2**62 + k, "index": k, "path": "a"} for k in range(2)]
    assert ClassificationTask(Linear(), "abc", mixup=1.0).forward(collate(items))["loss"].isfinite()


def test_report(tmp_path):
    before = Predictions.of(torch.eye(3)[[1, 1, 2, 0]], torch.tensor([0, 1, 2, 2]), torch.arange(4))
    after = Predictions.of(torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 2]), torch.arange(4))
    draw_report(before, after, ["a", "b", "ç"], tmp_path)
    accuracy = json.loads((tmp_path / "per_class_accuracy.json").read_text(encoding="utf-8"))
    assert accuracy == {"before": {"a": 0.0, "b": 1.0, "ç": 0.5}, "after": {"a": 1.0, "b": 1.0, "ç": 1.0}}
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in ("confusion", "reliability"))
