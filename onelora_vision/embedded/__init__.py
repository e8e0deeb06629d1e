"""Small bases that ship with the package, made by ``train_scripts/pretrain_embedded.py``, and adapters of them, made by
``make adapters``. Here are their paths."""

from pathlib import Path

FOLDER = Path(__file__).parent
#: A diffusers DiT pipeline folder (transformer, vae, scheduler): class-conditional printed glyphs at 32 x 32 pixels.
DIT = FOLDER / "dit"
#: The classifier whose features define `fd_embedded` and whose answers define `class_accuracy`.
FEATURES = FOLDER / "features"
#: A transformers Depth Anything with a metric head for rooms up to 10 m, rendered at 64 x 64 pixels.
DEPTH = FOLDER / "depth"
#: A timm folder: a VisionTransformer for 32 x 32 pixels that tells 36 printed characters apart.
VIT = FOLDER / "vit"
#: Adapter folders: what the three training scripts make without arguments.
ADAPTERS = FOLDER / "adapters"

#: What each task calls the base that ships with the package, and its folder.
BASES = {"generation": ("embedded", DIT), "classification": ("embedded", VIT), "depth": ("embedded/depth", DEPTH)}


def name_of(task: str) -> str | None:
    """The name of the task's embedded base, if it has one."""
    return BASES.get(task, (None, None))[0]


def resolve(task: str, source: str | Path) -> str:
    """``source`` as it is, or the folder of the task's embedded base if that is its name."""
    name, folder = BASES.get(task, (None, None))
    return str(folder if str(source) == name else source)
