import numpy as np
import torch

from onelora_vision.backbones.vit import ViTBase
from onelora_vision.data.classes.builtin import GLYPHS
from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.data.synthetic.glyphs import CLASS_NAMES


def test_glyphs_need_no_folder_have_as_many_of_each_class_and_share_no_image_between_splits():
    pictures = set()
    for split, count in GLYPHS.items():
        images = open_class_images("glyphs", split=split)
        assert images.class_names == CLASS_NAMES and np.bincount(images.labels).tolist() == [count] * 36
        pictures |= {images.read(index).tobytes() for index in range(0, len(images), 7)}
        assert images.read(3).size == (32, 32) and images.path(3) == f"glyphs/{split}[3]"
    assert len(pictures) == sum(len(range(0, 36 * count, 7)) for count in GLYPHS.values())


def test_glyphs_are_the_same_each_time_and_rendered_when_one_is_read():
    first, again = (open_class_images("glyphs", split="test") for _ in range(2))
    assert "_pictures" not in vars(first.images)
    assert first.read(40) == again.read(40) and first.identity() == again.identity()


@torch.no_grad()
def test_glyphs_are_what_the_embedded_classifier_was_trained_on():
    base, images = ViTBase.load("embedded"), open_class_images("glyphs", split="test").drawn(144)
    logits = base.model(torch.stack([base.transform(images.read(index)) for index in range(len(images))]))
    assert base.class_names == images.class_names
    assert (logits.argmax(1) == torch.tensor(images.labels)).double().mean() > 0.88
