"""Paths of the small bases included in the package and of adapters for them.

The bases are made by ``train_scripts/pretrain_embedded.py``, the adapters by ``make adapters``.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
#: A diffusers DiT pipeline folder (transformer, vae, scheduler): class-conditional printed glyphs at 32 x 32 pixels.
DIT = FOLDER / "dit"
#: The same for a smaller network that predicts the velocity, as SiT does; it uses the autoencoder of `DIT`.
SIT = FOLDER / "sit"
#: The classifier whose features define `fd_embedded` and whose predictions define `class_accuracy`.
FEATURES = FOLDER / "features"
#: A transformers Depth Anything with a metric head for rooms up to 10 m, rendered at 64 x 64 pixels.
DEPTH = FOLDER / "depth"
#: A timm folder: a VisionTransformer that classifies 36 printed characters at 32 x 32 pixels.
VIT = FOLDER / "vit"
#: A transformers LLaMA with its tokenizer, which does simple sums and retells stories.
LANGUAGE = FOLDER / "language"
#: Adapter folders: output of the training scripts run without arguments.
ADAPTERS = FOLDER / "adapters"

#: For each task, the names and folders of the bases included in the package, the default first.
BASES = {
    "generation": {"embedded": DIT, "embedded/sit": SIT},
    "classification": {"embedded": VIT},
    "depth": {"embedded/depth": DEPTH},
    "language": {"embedded/language": LANGUAGE},
}


def names_of(task: str) -> list[str]:
    """The names of the task's embedded bases, the default first."""
    return list(BASES.get(task, {}))


def name_of(task: str) -> str | None:
    """The name of the task's default embedded base, if it has one."""
    return next(iter(names_of(task)), None)


def folder_of(name: str) -> Path | None:
    """The folder of an embedded base by its name alone, if only one task has a base of that name."""
    found = [bases[name] for bases in BASES.values() if name in bases]
    return found[0] if len(found) == 1 else None


def autoencoder_of(source: str | Path) -> Path | None:
    """The autoencoder's folder of an embedded pipeline that has none in its own folder."""
    return DIT / "vae" if Path(source).resolve() == SIT.resolve() else None


def resolve(task: str, source: str | Path) -> str:
    """The folder of the task's embedded base named ``source``; otherwise ``source`` unchanged."""
    return str(BASES.get(task, {}).get(str(source), source))
