"""The flags that choose a dataset of images with classes, for the scripts that train on one."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from onelora_vision.data.classes.formats import EMBEDDED
from onelora_vision.training.config import option
from onelora_vision.training.decoding import DecodingOptions


@dataclass(kw_only=True)
class ClassDataOptions(DecodingOptions):
    """Which dataset of `onelora_vision.data.classes.formats` to use, and where it is."""

    group: ClassVar[str] = "data"

    dataset_name: str | None = option(
        None,
        "embedded (handwritten digits), glyphs (printed characters), imagefolder, webdataset, cifar10, cifar100, food101, flowers102, "
        "oxford_iiit_pet, vtab/TASK, fgvc/NAME, or a hub dataset (default: imagefolder with --data_dir, else embedded)",
    )
    data_dir: str | None = option(None, "folder of the dataset", may_change=True)
    download: bool = option(False, "download the dataset into --data_dir if it is not there", may_change=True)
    image_column: str = option("image", "column of the images, for a hub dataset")
    label_column: str = option("label", "column of the labels, for a hub dataset")
    on_bad_image: Literal["error", "skip"] = option("error", "what to do about an image that cannot be read")

    def __post_init__(self):
        super().__post_init__()
        self.dataset_name = self.dataset_name or ("imagefolder" if self.data_dir else EMBEDDED)

    @property
    def data_source(self) -> dict:
        """The arguments of `open_class_images` that select the images."""
        names = ("dataset_name", "data_dir", "download", "image_column", "label_column")
        return {name: getattr(self, name) for name in names}
