"""Image classification by a base with an adapter."""

from collections.abc import Sequence

from PIL import Image

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.vit import ViTBase, predict_classes
from onelora_vision.errors import InputError


class Classifier:
    """Classifies images with the head that an adapter trained.

    Attributes:
        base: the classifier with the adapter on its network, and its image preprocessing.
    """

    def __init__(self, base: ViTBase, info: AdapterInfo):
        self.base, self.info = base, info

    @property
    def class_names(self) -> list[str]:
        return self.base.class_names

    def classify(
        self, pictures: Sequence[Image.Image], *, top: int = 5, batch_size: int = 32
    ) -> list[list[tuple[str, float]]]:
        """The ``top`` most probable classes of each image as (name, probability), most probable first.

        Raises:
            InputError: ``pictures`` is not a sequence of Pillow images.
        """
        if not isinstance(pictures, Sequence) or not all(isinstance(picture, Image.Image) for picture in pictures):
            raise InputError("classify takes a list of Pillow images, such as [Image.open(path)]")
        return predict_classes(self.base, pictures, top=top, batch_size=batch_size)
