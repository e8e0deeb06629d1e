"""Small bases that ship with the package, made by ``train_scripts/pretrain_embedded.py``, and adapters of them, made by
``make adapters``. Here are their paths."""

from pathlib import Path

FOLDER = Path(__file__).parent
#: A diffusers DiT pipeline folder (transformer, vae, scheduler): class-conditional printed glyphs at 32 x 32 pixels.
DIT = FOLDER / "dit"
#: The same for a smaller network that predicts the velocity, as SiT does; its autoencoder is that of `DIT`.
SIT = FOLDER / "sit"
#: The classifier whose features define `fd_embedded` and whose answers define `class_accuracy`.
FEATURES = FOLDER / "features"
#: A transformers Depth Anything with a metric head for rooms up to 10 m, rendered at 64 x 64 pixels.
DEPTH = FOLDER / "depth"
#: A timm folder: a VisionTransformer for 32 x 32 pixels that tells 36 printed characters apart.
VIT = FOLDER / "vit"
#: A transformers LLaMA with its tokenizer, which does plain sums and retells stories.
LANGUAGE = FOLDER / "language"
#: Adapter folders: what the training scripts make without arguments.
ADAPTERS = FOLDER / "adapters"

#: What each task calls the bases that ship with the package, the default one first, and their folders.
BASES = {
    "generation": {"embedded": DIT, "embedded/sit": SIT},
    "classification": {"embedded": VIT},
    "depth": {"embedded/depth": DEPTH},
    "language": {"embedded/language": LANGUAGE},
}


def names_of(task: str) -> list[str]:
    """The names of the task's embedded bases, the default one first."""
    return list(BASES.get(task, {}))


def name_of(task: str) -> str | None:
    """The name of the task's default embedded base, if it has one."""
    return next(iter(names_of(task)), None)


def folder_of(name: str) -> Path | None:
    """The folder of an embedded base by its name alone, where no two tasks call theirs so."""
    found = [bases[name] for bases in BASES.values() if name in bases]
    return found[0] if len(found) == 1 else None


def autoencoder_of(source: str | Path) -> Path | None:
    """The folder of the autoencoder of an embedded pipeline that has none in its own folder."""
    return DIT / "vae" if Path(source).resolve() == SIT.resolve() else None


def resolve(task: str, source: str | Path) -> str:
    """``source`` as it is, or the folder of the task's embedded base of that name."""
    return str(BASES.get(task, {}).get(str(source), source))
