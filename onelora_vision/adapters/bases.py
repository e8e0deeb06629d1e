"""The base model that an adapter file names, loaded and made fit for the adapter: its classes, its range of depths."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from onelora_vision.adapters.file import Adapter, fingerprint
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.preprocessing import image_size
from onelora_vision.errors import InputError, nearest, one_line

TASKS = ("generation", "classification", "depth")


@dataclass
class Base:
    """A base model without adapter.

    Attributes:
        model: what adapters are attached to.
        host: the library it comes from: ``diffusers``, ``timm`` or ``transformers``.
        source: where it was loaded from (folder, file, hub id or timm name).
        fingerprint: `fingerprint` as training takes it, before the model was fitted to the adapter.
        loaded: what the backbone's loader returned (`DiTBase`, `ViT` or the model itself).
        own_table: the base's own label table (classes + 1, D), of a DiT.
        options: what a host's own loader needs besides the source to give this model.
        changed: modules whose values were changed to fit the adapter's settings, in a way that no option tells.
    """

    model: nn.Module
    host: str
    source: str
    fingerprint: str
    loaded: object
    own_table: torch.Tensor | None = None
    options: dict = field(default_factory=dict)
    changed: tuple[str, ...] = ()

    def example(self, batch: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
        """Inputs by argument name, the same for every run: what two models are compared on."""
        generator = torch.Generator().manual_seed(seed)
        if self.host == "diffusers":
            config = self.model.config
            shape = (batch, config.in_channels, config.sample_size, config.sample_size)
            times = torch.linspace(50, 850, batch).long()
            labels = (torch.arange(batch) - 1) % (config.num_embeds_ada_norm + 1)  # the null class first
            latents = torch.randn(shape, generator=generator)
            return {"hidden_states": latents, "timestep": times, "class_labels": labels}
        data_config = getattr(self.loaded, "data_config", None)
        size = data_config["input_size"] if data_config else (3, *image_size(self.model.config))
        name = "x" if self.host == "timm" else "pixel_values"
        return {name: torch.randn(batch, *size, generator=generator)}


def output_of(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The model's answer as one tensor, whatever its host wraps it in."""
    inputs = dict(inputs)
    output = model(inputs.pop("x"), **inputs) if "x" in inputs else model(**inputs)
    if isinstance(output, torch.Tensor):
        return output
    return next(getattr(output, name) for name in ("sample", "logits", "predicted_depth") if hasattr(output, name))


def load_base(info: AdapterInfo, base: str | Path | None = None) -> Base:
    """Load the base of an adapter in fp32, in eval mode, with the adapter's classes and settings.

    Args:
        info: what the adapter's file says.
        base: where the base is, if not where the file says.

    Raises:
        InputError: the file does not say its task, or there is no such base.
    """
    place = str(base or info.base)
    if not place:
        raise InputError("the adapter's file does not name its base: give it with --base")
    loaders = {"generation": _generation, "classification": _classification, "depth": _depth}
    if info.task not in loaders:
        hint = nearest(info.task, TASKS, "task") if info.task else f"; known tasks: {', '.join(TASKS)}"
        raise InputError(f"the adapter's file names task {info.task!r}, so its base {place} cannot be loaded{hint}")
    found = loaders[info.task](info, place)
    found.model.eval().requires_grad_(False)
    return found


def require_same_base(adapter: Adapter, base: Base) -> None:
    """Refuse a base that the adapter was not trained on, or that prepares its pictures in another way by now."""
    expected = adapter.info.base_fingerprint
    if expected and base.fingerprint != expected:
        raise InputError(
            f"{adapter.path}: trained on another base than {base.source} (fingerprint {expected}, found "
            f"{base.fingerprint}); the file names {adapter.info.base!r}"
        )
    before, now = adapter.info.extra.get("preprocessing"), getattr(base.loaded, "preprocessing", None)
    if not (isinstance(before, dict) and now):
        return
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key]:
            raise InputError(
                f"{adapter.path}: trained on pictures with {one_line(key, 40)} {one_line(before[key], 100)}, but "
                f"{base.source} makes them with {one_line(now[key], 100)}; use the base with the preprocessing it had"
            )


def _generation(info: AdapterInfo, place: str) -> Base:
    from onelora_vision import embedded
    from onelora_vision.backbones.dit import dit_adaptation, load_dit

    source = str(embedded.DIT) if place == "embedded" else place
    loaded = load_dit(source, stock_numerics=info.extra.get("stock_numerics", False))
    model = loaded.transformer
    mark, table = fingerprint(model, dit_adaptation(model).whole_modules), model.label_table.weight.detach()
    if info.class_names:
        model.set_classes(info.class_names, loaded.class_names, torch.Generator().manual_seed(0))
        loaded.class_names = list(info.class_names)
    if info.extra.get("fuse_qkv"):
        model.fuse_qkv()
    return Base(model, "diffusers", source, mark, loaded, own_table=table)


def _classification(info: AdapterInfo, place: str) -> Base:
    from onelora_vision import embedded
    from onelora_vision.backbones.fuse import fuse_qkv
    from onelora_vision.backbones.vit import EMBEDDED, classifier_names, load_vit, replace_head

    options = {key: info.extra.get(key) for key in ("architecture", "resolution")}
    loaded = load_vit(place, **options)
    mark = fingerprint(loaded.model, exclude=classifier_names(loaded.model))
    if info.class_names:
        loaded = replace_head(loaded, info.class_names)
    if info.extra.get("fuse_qkv"):
        fuse_qkv(loaded.model)
    source = str(embedded.VIT) if place == EMBEDDED else place
    classes = len(info.class_names or []) or None
    if hasattr(loaded.model, "pretrained_cfg"):
        source, chosen = _timm_source(source, options)
        return Base(loaded.model, "timm", source, mark, loaded, options=chosen | _given(num_classes=classes))
    chosen = {"num_labels": classes, "ignore_mismatched_sizes": True} if classes else {}
    return Base(loaded.model, "transformers", source, mark, loaded, options=chosen)


def _timm_source(place: str, settings: dict) -> tuple[str, dict]:
    """What ``timm.create_model`` takes for a folder, a checkpoint file, a hub id or a name of its own."""
    options = _given(img_size=settings["resolution"])
    path = Path(place)
    if path.is_file():
        return settings["architecture"], {**options, "pretrained_cfg_overlay": {"file": place}}
    if path.is_dir():
        return f"local-dir:{path}", options
    return (f"hf-hub:{place}" if place.count("/") == 1 else place), options


def _given(**options) -> dict:
    return {key: value for key, value in options.items() if value is not None}


def _depth(info: AdapterInfo, place: str) -> Base:
    from onelora_vision import embedded
    from onelora_vision.backbones.depth_anything import EMBEDDED, is_metric, load_depth_anything, set_max_depth
    from onelora_vision.backbones.fuse import fuse_qkv

    model = load_depth_anything(place)
    mark = fingerprint(model, exclude=["head"])
    max_depth, changed, options = info.extra.get("max_depth"), (), {}
    if max_depth is not None and (not is_metric(model) or max_depth != model.config.max_depth):
        set_max_depth(model, max_depth)
        changed, options = ("head",), {"max_depth": int(max_depth), "depth_estimation_type": "metric"}
    if info.extra.get("fuse_qkv"):
        fuse_qkv(model)
    source = str(embedded.DEPTH) if place == EMBEDDED else place
    return Base(model, "transformers", source, mark, model, options=options, changed=changed)
