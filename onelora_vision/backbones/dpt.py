"""DPT (Ranftl et al., arXiv 2103.13413) in transformers: MiDaS's relative depth on a plain or DINOv2 encoder."""

from dataclasses import dataclass

from transformers import DPTConfig, DPTForDepthEstimation

from onelora_vision.backbones.depth import DepthBase
from onelora_vision.errors import InputError


@dataclass(kw_only=True)
class DPTBase(DepthBase):
    """DPT, which predicts inverse depth up to scale and shift. Train it with ``--loss ssi``.

    In the hybrid, whose first stages are convolutions, the patch size is still 16, and the ViT is adapted.
    """

    model: DPTForDepthEstimation

    model_class, config_class, kind = DPTForDepthEstimation, DPTConfig, "DPT"
    is_metric, max_depth = False, None

    @property
    def _vision(self):
        """The config of the encoder: DPT's own, or that of its backbone from another family."""
        config = self.model.config
        return config if config.is_hybrid or config.backbone_config is None else config.backbone_config

    @property
    def mean(self) -> tuple[float, float, float]:
        return (0.5,) * 3 if self._vision is self.model.config else (0.485, 0.456, 0.406)

    @property
    def std(self) -> tuple[float, float, float]:
        return (0.5,) * 3 if self._vision is self.model.config else (0.229, 0.224, 0.225)

    @property
    def encoder(self) -> str:
        return "dpt.encoder." if self._vision is self.model.config else "backbone.encoder."

    @property
    def norms(self) -> str:
        return self.encoder.partition(".")[0] + "."

    @property
    def image_size(self) -> int:
        return self._vision.image_size

    @property
    def patch_size(self) -> int:
        return self._vision.patch_size

    def resolution(self, given: int | str | None = None) -> int | str:
        """The input size (see `DepthBase.resolution`). With DPT's own ViT it is always square, as the neck requires."""
        if self._vision is not self.model.config:
            return super().resolution(given)
        height, _, width = str(given or self.image_size).partition("x")
        if width not in ("", height):
            raise InputError(f"--resolution {given}: DPT on its own ViT takes square images only, such as {height}")
        return f"{height}x{height}"

    def set_max_depth(self, max_depth: int) -> None:
        raise InputError(
            "DPT's head predicts relative depth and cannot reach a range in metres: leave --max_depth out and train "
            "with --loss ssi, or start from a Depth Anything model"
        )
