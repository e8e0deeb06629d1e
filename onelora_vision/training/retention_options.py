"""The flags for evaluating how well the base still works on its old data (`tasks.retention`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from onelora_vision import embedded
from onelora_vision.errors import InputError
from onelora_vision.training.config import option


class OldData(NamedTuple):
    """What these flags need to know about a script's datasets.

    Attributes:
        task: of the script. builtin: the dataset that the task's embedded base was trained on.
        folders: the default dataset if only ``--retention_dir`` is set.
        ignored_by: the flags that have no effect with a dataset, without prefixes such as ``train_``.
        needs_folder: whether a dataset needs its folder.
    """

    task: str
    builtin: str
    folders: str
    ignored_by: Callable[[str], frozenset[str]]
    needs_folder: Callable[[str], bool]


# Flags of the training data that also apply to the old data.
_SHARED = frozenset({"download", "image_column", "label_column", "cache_dir", "on_bad_image"})


@dataclass(kw_only=True)
class RetentionOptions:
    """Whether and on what to measure retention; configs that inherit this describe their datasets in ``old_data``."""

    group: ClassVar[str] = "evaluation"
    old_data: ClassVar[OldData]

    retention: bool = option(
        False,
        "also evaluate the base's own task on its old data, before and after training",
        may_change=True,
    )
    retention_dataset: str | None = option(
        None, "the base's old data, named like the training data (default: what the embedded base was trained on)",
        may_change=True,
    )  # fmt: skip
    retention_dir: str | None = option(None, "folder of the old data", may_change=True)
    retention_samples: int | None = option(
        None, "use N images of the old data, the same in every run (default: all of its test split)", may_change=True
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.retention:
            for name in ("retention_dataset", "retention_dir", "retention_samples"):
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} has no effect without --retention: add it, or leave this out")
            return
        count = self.retention_samples
        self._require("retention_samples", count is None or count >= 1, "at least 1")
        self.retention_dataset = self.retention_dataset or self._usual_old_data()
        name = self.retention_dataset
        if "data_dir" in self.old_data.ignored_by(name):
            self._refuse_ignored({"retention_dir"}, "retention_dataset", name)
        elif self.retention_dir is None and self.old_data.needs_folder(name):
            raise InputError(f"--retention_dataset {name} needs --retention_dir: its folder")

    @property
    def is_base_embedded(self) -> bool:
        """Whether the base is included in the package."""
        task = self.old_data.task
        own = embedded.resolve(task, embedded.name_of(task))
        return embedded.resolve(task, self.pretrained_model_name_or_path) == own

    def _usual_old_data(self) -> str:
        if self.retention_dir is not None:
            return self.old_data.folders
        if self.is_base_embedded:
            return self.old_data.builtin
        raise InputError(
            f"--retention: the training data of {self.pretrained_model_name_or_path} is unknown; give its old data "
            "with --retention_dataset and --retention_dir"
        )

    def ignored_flags(self, ignored: frozenset[str]) -> frozenset[str]:
        """Those flags in ``ignored``, which the training data ignores, that the old data ignores as well."""
        if not self.retention:
            return ignored
        return ignored - (_SHARED - self.old_data.ignored_by(self.retention_dataset))
