"""The bases that adapters go on, one row per family of networks, and the tasks that they are for.

Nothing heavy is imported before a row is used, so that commands can ask before they load a model.
"""

import functools
import importlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onelora_vision.errors import InputError, one_line

if TYPE_CHECKING:
    from onelora_vision.backbones.base import Base


def named(place: str) -> Any:
    """What is called ``module:name``; its module is imported now."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Row:
    """One family of base models.

    Attributes:
        task: what its adapters are for.
        place: module and class of its `Base`.
        names: what its ``config.json`` calls it, in ``model_type`` or ``_class_name``; empty: all others of its task.
    """

    task: str
    place: str
    names: tuple[str, ...] = ()

    def base_class(self) -> "type[Base]":
        return named(self.place)


#: The entry points by which an installed package adds rows: modules that are imported before a base is looked for.
PLUGINS = "onelora_vision.bases"
ROWS = [
    Row("generation", "onelora_vision.backbones.dit:DiTBase", ("DiTTransformer2DModel", "Transformer2DModel")),
    Row("depth", "onelora_vision.backbones.depth_anything:DepthAnythingBase", ("depth_anything",)),
    Row("depth", "onelora_vision.backbones.dpt:DPTBase", ("dpt",)),
    Row("language", "onelora_vision.backbones.llama:LlamaBase", ("llama",)),
    Row("classification", "onelora_vision.backbones.vit:ViTBase"),
]


@dataclass(frozen=True)
class Task:
    """A task that adapters are trained for, as texts for people have it.

    Attributes:
        model: module and class of `onelora_vision.inference` that uses its adapters.
        does: what its adapters do, in a word or two.
        use: Python that uses ``adapted``, what `load_adapted` returned; ``{example}`` stands for a class.
        merged: Python that loads a merged export, by the library of the base.
        command: a command that tries an adapter.
        hub: what the hub calls it, as a ``pipeline_tag``.
        metrics: the first of these that a run measured is what its runs are compared by.
        setup: Python that comes before ``use``.
        other_rows: rows of the head or label table in addition to one per class; None for a task without classes.
        predict: function that ``onelora predict`` calls with its arguments and the pictures' paths; empty: it refuses.
        exports: formats of `adapters.formats` that only its adapters have.
    """

    model: str
    does: str
    use: str
    merged: dict[str, str]
    command: str
    hub: str
    metrics: tuple[str, ...]
    setup: str = ""
    other_rows: int | None = None
    predict: str = ""
    exports: tuple[str, ...] = ()


_PICTURE = 'from PIL import Image\n\nimage = Image.open("picture.jpg")'
TASKS = {
    "generation": Task(
        "onelora_vision.inference.generation:Generator",
        "draws",
        "images = adapted.sample([{example}], seeds=[0])  # (1, 3, H, W) in [0, 1]",
        {"diffusers": 'from diffusers import DiTPipeline\n\npipeline = DiTPipeline.from_pretrained("merged")'},
        "onelora sample {adapter} -o images",
        "unconditional-image-generation",
        ("fd_inception", "fd_dinov2", "fd_embedded"),
        other_rows=1,  # the null class
        exports=("diffusers", "comfy"),
    ),
    "classification": Task(
        "onelora_vision.inference.classification:Classifier",
        "classifies",
        "classes = adapted.classify([image])  # the most probable classes of each image, as (name, probability)",
        {
            "timm": 'import timm\n\nmodel = timm.create_model("local-dir:merged", pretrained=True)',
            "transformers": "from transformers import AutoModelForImageClassification\n\n"
            'model = AutoModelForImageClassification.from_pretrained("merged")',
        },
        "onelora predict --adapter {adapter} PICTURES",
        "image-classification",
        ("top1",),
        _PICTURE,
        other_rows=0,
        predict="onelora_vision.cli.predictions.classification:predict",
    ),
    "depth": Task(
        "onelora_vision.inference.depth:DepthEstimator",
        "estimates depth",
        "depth = adapted(image)  # (H, W), in metres where the base is metric",
        {
            "transformers": "from transformers import AutoModelForDepthEstimation\n\n"
            'model = AutoModelForDepthEstimation.from_pretrained("merged")'
        },
        "onelora predict --adapter {adapter} PICTURES",
        "depth-estimation",
        ("abs_rel",),
        _PICTURE,
        predict="onelora_vision.cli.predictions.depth:predict",
    ),
}


def all_rows() -> list[Row]:
    """`ROWS`, with the rows that installed packages add when their entry points of `PLUGINS` are imported."""
    _import_plugins()
    return ROWS


@functools.cache
def _import_plugins() -> None:
    for point in importlib.metadata.entry_points(group=PLUGINS):
        try:
            point.load()
        except Exception as error:  # whatever a plug-in raises, it must not look like a fault of the command
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(
                f"the installed package {point.dist.name} names {point.value} in its entry points {PLUGINS}, but "
                f"it cannot be imported ({reason}); fix or uninstall it"
            ) from error


def base_class(task: str, source: str | Path) -> "type[Base]":
    """The family that a model of ``task`` (of `TASKS`) at ``source`` belongs to.

    Where several families have the task, the model's config decides; the first one where it says nothing known.
    """
    rows = [row for row in all_rows() if row.task == task]
    named = [row for row in rows if row.names and config_name(source) in row.names] if len(rows) > 1 else []
    return (named or rows)[0].base_class()


def row_of(config: dict) -> Row:
    """The row of the network that a ``config.json`` describes; one without names takes what no other row names."""
    name = config.get("_class_name") or config.get("model_type")
    return next(row for row in sorted(all_rows(), key=lambda row: not row.names) if name in row.names or not row.names)


def config_name(source: str | Path) -> str | None:
    """What the ``config.json`` of a model folder or hub repository calls its network; None where there is none."""
    file = Path(source) / "config.json"
    if not file.is_file():
        if Path(source).exists() or str(source).count("/") != 1:
            return None
        file = _from_hub(str(source))
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: its config.json cannot be read ({one_line(error)})") from error
    return (config.get("_class_name") or config.get("model_type")) if isinstance(config, dict) else None


def _from_hub(repository: str) -> Path | None:
    from huggingface_hub import hf_hub_download

    from onelora_vision.runtime.hub import expect_hub

    expect_hub(repository)
    try:
        return Path(hf_hub_download(repository, "config.json"))
    except Exception:  # whatever keeps it away, the loader of the family says so in its own words
        return None
