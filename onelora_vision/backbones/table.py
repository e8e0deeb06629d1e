"""The supported bases, one row per family of networks, and their tasks.

Nothing heavy is imported before a row is used, so commands can consult the table before they load a model.
"""

import contextlib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onelora_vision import embedded
from onelora_vision.backbones.config_file import config_of, name_in
from onelora_vision.errors import InputError
from onelora_vision.runtime.plugins import import_plugins

if TYPE_CHECKING:
    from onelora_vision.backbones.base import Base


def named(place: str) -> Any:
    """Import the object called ``module:name``."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Row:
    """One family of base models.

    Attributes:
        task: the task of its adapters.
        place: module and class of its `Base`.
        names: its names in ``config.json``, as ``model_type`` or ``_class_name``. If empty, the row matches every name
            that is in no other row.
        is_default: whether it is used for models of its task whose config names no known family.
    """

    task: str
    place: str
    names: tuple[str, ...] = ()
    is_default: bool = False

    def base_class(self) -> "type[Base]":
        return named(self.place)


ROWS = [
    Row(
        "generation",
        "onelora_vision.backbones.dit:DiTBase",
        ("DiTTransformer2DModel", "Transformer2DModel"),
        is_default=True,
    ),
    Row("depth", "onelora_vision.backbones.depth_anything:DepthAnythingBase", ("depth_anything",), is_default=True),
    Row("depth", "onelora_vision.backbones.dpt:DPTBase", ("dpt",)),
    Row(
        "language",
        "onelora_vision.backbones.language:LanguageBase",
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3", "olmo2", "gpt_neox", "opt"),
        is_default=True,
    ),
    Row("classification", "onelora_vision.backbones.vit:ViTBase", is_default=True),
]


@dataclass(frozen=True)
class Task:
    """A task that adapters are trained for, with the texts that describe it to users.

    Attributes:
        model: module and class in `onelora_vision.inference` that uses its adapters.
        does: what its adapters do, in a word or two.
        use: Python code that uses ``adapted``, the result of `load_adapted`; ``{example}`` stands for a class.
        merged: library of the base -> Python code that loads a merged export.
        command: command for trying out an adapter.
        hub: its ``pipeline_tag`` on the hub.
        metrics: metrics in order of preference; runs are compared by the first one that was measured.
        setup: Python code that precedes ``use``.
        other_rows: rows of the head or label table in addition to one per class; None for a task without classes.
        predict: function that ``onelora predict`` calls with its arguments; empty if the task is not supported there.
        exports: formats in `adapters.formats` that are available for this task only.
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
    "language": Task(
        "onelora_vision.inference.language:Answerer",
        "answers questions",
        'answers = adapted.answer(["How many are 2 and 3?"])  # a text for each question',
        {
            "transformers": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'model = AutoModelForCausalLM.from_pretrained("merged")\n'
            'tokenizer = AutoTokenizer.from_pretrained("merged")'
        },
        "onelora predict --adapter {adapter} QUESTION",
        "text-generation",
        ("exact_match", "loss"),
        predict="onelora_vision.cli.predictions.language:predict",
    ),
}


def all_rows() -> list[Row]:
    """`ROWS`, including those of installed plugins (see `runtime.plugins`)."""
    import_plugins()
    return ROWS


def base_class(task: str, source: str | Path) -> "type[Base]":
    """Find the family of a model of ``task`` (a key of `TASKS`) at ``source``.

    If the task has several families, the config at ``source`` decides. If there is no config, or it names none of them,
    the task's default family is used, whose loader reports what is wrong.

    Raises:
        InputError: the task has no embedded base of that name.
    """
    names = embedded.names_of(task)
    if str(source).startswith("embedded/") and str(source) not in names and not Path(source).exists():
        raise InputError(f"{source}: {task} has no embedded base of that name; it has {', '.join(names) or 'none'}")
    rows = [row for row in all_rows() if row.task == task]
    default = next(row for row in rows if row.is_default)
    if len(rows) == 1:
        return default.base_class()
    with contextlib.suppress(InputError):
        name = name_in(config_of(embedded.resolve(task, source)) or {})
        return next((row for row in rows if name in row.names), default).base_class()
    return default.base_class()


def row_of(config: dict) -> Row:
    """Find the row of the network that a config describes. Names in no row belong to image classifiers."""
    rows, name = all_rows(), name_in(config)
    return next((row for row in rows if name in row.names), next(row for row in rows if not row.names))
