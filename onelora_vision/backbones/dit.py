"""DiT and SiT pipelines as bases: loading network, autoencoder and scheduler, fitting to new classes, and saving."""

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel, SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import logging as hub_logging
from torch import nn

from onelora_vision import embedded
from onelora_vision.backbones.base import Adaptation, Base, norms_with_parameters
from onelora_vision.backbones.class_names import Matches
from onelora_vision.backbones.dit_names import LABEL_TABLE
from onelora_vision.backbones.dit_network import DiT
from onelora_vision.diffusion.flow import Flow
from onelora_vision.diffusion.objective import Epsilon, objective_of
from onelora_vision.errors import InputError, nearest, one_line
from onelora_vision.runtime.hub import expect_hub
from onelora_vision.storage.outputs import folder_output

PIPELINE = "pipeline"
_CONFIG_FIELDS = (
    "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "sample_size",
    "patch_size", "num_embeds_ada_norm", "attention_bias", "norm_type", "activation_fn",
)  # fmt: skip


def dit_adaptation(model: DiT) -> Adaptation:
    """The layers that the paper adapts in DiT: every linear of the blocks and the final layer.

    The label table is trained whole, and the timestep MLP stays frozen. DiT-XL/2 with 101 classes: 486,176 parameters
    of b and 117,504 of the table.
    """
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(("transformer_blocks.", "proj_out_"))
    ]
    return Adaptation(
        target_modules=linears,
        norm_modules=norms_with_parameters(model),
        whole_modules=[LABEL_TABLE],
    )


@dataclass(kw_only=True)
class DiTBase(Base):
    """A DiT pipeline: the network, its autoencoder and scheduler, and the names of its classes.

    SiT and REPA have the same network but another objective, which the scheduler determines (see `objective`).

    Attributes:
        own_table: the label table (classes + 1, D) that the network was loaded with.
        matches: the classes whose rows `fit` carried over to the new label table.
    """

    model: DiT
    vae: AutoencoderKL | None = None
    scheduler: SchedulerMixin | None = None
    own_table: torch.Tensor | None = None
    matches: Matches | None = None

    task, host = "generation", "diffusers"
    load_settings = ("stock_numerics",)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        variant: str | None = None,
        cache_dir: str | None = None,
        stock_numerics: bool = False,
    ) -> Self:
        """Load a diffusers DiT pipeline folder or hub id (transformer + vae + scheduler, ``id2label``) in fp32.

        Raises:
            InputError: the pipeline does not exist or is not a class-conditional DiT.
        """
        source = embedded.resolve(cls.task, source)
        if Path(source).exists() and not (Path(source) / "model_index.json").is_file():
            raise InputError(f"{source}: no model_index.json there; give the folder of a diffusers DiT pipeline")
        expect_hub(source)
        try:
            with quiet_diffusers():
                where = {"revision": revision, "variant": variant, "cache_dir": cache_dir}
                pipeline = DiTPipeline.from_pretrained(source, **where, **_shared_parts(source))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = one_line(error, 300)
            raise InputError(
                f"{source}: cannot be loaded as a DiT pipeline ({type(error).__name__}: {reason})"
            ) from error
        if not isinstance(pipeline.transformer, DiTTransformer2DModel):
            raise InputError(f"{source}: its transformer is a {type(pipeline.transformer).__name__}, not a DiT")
        model = DiT.from_stock(pipeline.transformer, stock_numerics=stock_numerics)
        names = _class_names(pipeline, model.num_classes)
        base = cls(model=model, vae=pipeline.vae, scheduler=pipeline.scheduler, class_names=names, source=source)
        try:
            str(base.objective)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        return base

    @classmethod
    def from_config(cls, config: dict, num_classes: int | None = None, fuse_qkv: bool = False) -> Self:
        """Build the network alone, without autoencoder and scheduler."""
        known = {key: value for key, value in config.items() if key in _CONFIG_FIELDS}
        known["num_embeds_ada_norm"] = num_classes or config.get("num_embeds_ada_norm", 1000)
        model = DiT.from_config(known)
        return cls(model=model.fuse_qkv() if fuse_qkv else model)

    def _fit(self, class_names: list[str] | None, *, seed: int, fuse_qkv: bool = False) -> None:
        """Make a label table for ``class_names``, keeping the rows of known classes (see `DiT.set_classes`)."""
        if self.own_table is None:
            self.own_table = self.model.label_table.weight.detach()
        if class_names:
            generator = torch.Generator().manual_seed(seed)
            self.matches = self.model.set_classes(class_names, self.class_names, generator)
            self.class_names = list(class_names)
        if fuse_qkv:
            self.model.fuse_qkv()

    @property
    def schedule(self) -> dict[str, Any]:
        """The scheduler's config with the name of its class, from which `diffusion` derives the base's objective."""
        return {"_class_name": type(self.scheduler).__name__, **self.scheduler.config}

    @property
    def objective(self) -> Epsilon | Flow | None:
        """What the network predicts; None without a scheduler.

        Raises:
            InputError: the scheduler does not belong to a known objective.
        """
        return None if self.scheduler is None else objective_of(self.schedule)

    def adaptation(self) -> Adaptation:
        return dit_adaptation(self.model)

    def replaced_modules(self) -> list[str]:
        return [LABEL_TABLE]

    def _take_config(self, config: dict) -> None:
        self.model.register_to_config(num_embeds_ada_norm=config["num_embeds_ada_norm"])

    def example(self, batch: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
        config = self.model.config
        shape = (batch, config.in_channels, config.sample_size, config.sample_size)
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        labels = (torch.arange(batch) - 1) % (config.num_embeds_ada_norm + 1)  # the null class first
        times, objective = torch.linspace(50, 850, batch).long(), self.objective
        if isinstance(objective, Flow):
            times = objective.timestep(times / 1000)
        return {"hidden_states": latents, "timestep": times, "class_labels": labels}

    def networks(self) -> list[nn.Module]:
        return [self.model, self.vae]

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the network's latents decode to."""
        return self.model.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1)

    def save_merged(self, model: nn.Module, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
        save_pipeline(replace(self, model=model), folder, dtype, max_shard_size)

    def compute_like_host(self, *, with_config: bool) -> None:
        if with_config:  # a pipeline's config holds the norms' eps, but not the spacing of the frequencies
            self.model.conditioning.time_proj.downscale_freq_shift = 1
        else:
            self.model.set_numerics(stock=True)

    @property
    def host_class(self) -> str:
        return "DiTTransformer2DModel"

    def host_options(self) -> dict:
        return {"subfolder": "transformer"}

    def host_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Replace the null class by that of the base's own label table."""
        labels, null = inputs["class_labels"], len(self.own_table) - 1
        return {**inputs, "class_labels": torch.where(labels == self.model.null_class, null, labels)}


@contextlib.contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Load or build a pipeline without diffusers' progress bars and log messages that users can do nothing about.

    diffusers logs an error if a pipeline of ``.bin`` files has no safetensors, and then loads it. When offline, the
    hub's client warns that it uses its cache, which `expect_hub` has already reported.
    """
    verbosity, hubs = diffusers_logging.get_verbosity(), hub_logging.get_verbosity()
    diffusers_logging.set_verbosity(logging.CRITICAL)
    hub_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hubs)
        diffusers_logging.enable_progress_bar()


def _shared_parts(source: str) -> dict[str, AutoencoderKL]:
    """The parts of an embedded pipeline that are stored in another one's folder."""
    folder = embedded.autoencoder_of(source)
    return {} if folder is None else {"vae": AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)}


def _class_names(pipeline: DiTPipeline, num_classes: int) -> list[str]:
    """One name per class: from ``id2label`` of the pipeline's config, or else the class's number."""
    id2label = pipeline.config.get("id2label") or {}
    id2label = {int(key): value for key, value in id2label.items()}
    if not id2label:  # the pipeline itself keeps only its inverse
        for name, index in pipeline.labels.items():
            id2label[index] = f"{id2label[index]}, {name}" if index in id2label else name
    return [id2label.get(index, str(index)) for index in range(num_classes)]


def save_pipeline(
    base: DiTBase,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
    overwrite: bool = False,
) -> None:
    """Write a pipeline folder that stock diffusers loads, including ``id2label``.

    Stock diffusers samples it with its own timestep frequencies and, unless there are 1000 classes, with the wrong null
    class (its pipeline always uses 1000). Use `onelora_vision.diffusion.sampling.sample` instead, or guidance_scale=1
    there. If the base predicts the velocity, diffusers loads the parts, but its pipeline cannot sample.

    Raises:
        InputError: the place is taken (see `outputs`), unless by a pipeline that is to be overwritten.
    """
    with quiet_diffusers():
        pipeline = DiTPipeline(base.model.to_stock().to(dtype), copy.deepcopy(base.vae).to(dtype), base.scheduler)
    pipeline.register_to_config(id2label={str(i): name for i, name in enumerate(base.class_names)})
    with folder_output(folder, PIPELINE, overwrite=overwrite) as temporary:
        pipeline.save_pretrained(temporary, max_shard_size=max_shard_size)


def class_ids(names: Sequence[str | int], class_names: Sequence[str]) -> list[int]:
    """Convert class names or numbers to class numbers. A name may be any of a class's comma-separated synonyms.

    An int is always a class number, even if classes are named by other numbers. A string is a name first.

    Raises:
        InputError: the model has no class of this name or number.
    """
    ids = {}
    for index, name in enumerate(class_names):
        for synonym in [name, *name.split(",")]:
            ids.setdefault(synonym.strip().lower(), index)
    found = []
    for name in names:
        key = str(name).strip().lower()
        if key in ids and not isinstance(name, int):
            found.append(ids[key])
        elif key.isdigit() and int(key) < len(class_names):
            found.append(int(key))
        else:
            raise InputError(f"no class {name!r} among the model's {len(class_names)}{nearest(key, ids, 'class')}")
    return found
