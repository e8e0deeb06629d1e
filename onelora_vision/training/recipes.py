"""The recipes included in the package: YAML files for the training scripts, found by name."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from onelora_vision.errors import InputError, nearest


@dataclass(frozen=True)
class Recipe:
    """One recipe.

    Attributes:
        name: for ``--config``. task: its name in ``onelora train``. file: the YAML file.
    """

    name: str
    task: str
    file: Path

    @property
    def about(self) -> str:
        """The first sentence of the file's comment."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        comment = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
        return comment.partition(". ")[0].rstrip(".")


def find_recipes(task: str | None = None) -> list[Recipe]:
    """All recipes, or those of one task, sorted by task and name.

    Raises:
        InputError: no such task.
    """
    recipes = [Recipe(file.stem, file.parent.name, file) for file in sorted(_folder().glob("*/*.yaml"))]
    tasks = sorted({recipe.task for recipe in recipes})
    if task not in (None, *tasks):
        raise InputError(f"no recipes for the task {task!r}{nearest(task, tasks, 'task')}")
    return [recipe for recipe in recipes if task in (None, recipe.task)]


def config_file(path: str) -> str:
    """The file meant by ``--config``: a path, or the name of a recipe if no such file exists.

    Raises:
        InputError: neither a file nor a recipe.
    """
    if Path(path).exists() or Path(path).suffix or Path(path).name != path:
        return path
    by_name = {_plain(recipe.name): recipe for recipe in find_recipes()}
    if _plain(path) not in by_name:
        names = [recipe.name for recipe in by_name.values()]
        hint = nearest(path, names, "recipe")
        raise InputError(f"--config {path}: no such file, and no recipe of that name{hint} (onelora recipes)")
    return str(by_name[_plain(path)].file)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _folder() -> Path:
    """The recipes' folder, next to the scripts: inside the package in the wheel, and at the top of a checkout."""
    spec = importlib.util.find_spec("onelora_vision.train_scripts")
    scripts = Path(spec.origin).parent if spec and spec.origin else Path(__file__).parents[2] / "train_scripts"
    return scripts / "configs"
