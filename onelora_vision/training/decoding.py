"""The flag that keeps decoded training images in memory, for the scripts that train on images."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onelora_vision.training.config import option

if TYPE_CHECKING:
    from onelora_vision.data.classes.dataset import ClassImageDataset
    from onelora_vision.data.depth.dataset import DepthDataset
    from onelora_vision.training.setup import Run


@dataclass(kw_only=True)
class DecodingOptions:
    group: ClassVar[str] = "data"

    cache_images: Literal["none", "uint8"] = option(
        "none", "uint8: decode the training images once, into memory that loader workers share", may_change=True
    )


def keep_decoded(run: "Run", dataset: "ClassImageDataset | DepthDataset") -> None:
    """Decode a training set before the first step if ``--cache_images`` asks for it.

    Raises:
        InputError: the images do not fit in memory.
    """
    if run.config.cache_images != "none":
        with run.phase("decoding the training images"):
            dataset.keep_decoded(hidden=not run.accelerator.is_local_main_process)
