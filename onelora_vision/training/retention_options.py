"""The flags that have a run measure what the base still knows of its old data (`tasks.retention`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from onelora_vision import embedded
from onelora_vision.errors import InputError
from onelora_vision.training.config import option


class OldData(NamedTuple):
    """What a script's datasets are, as far as the flags must know.

    Attributes:
        task: of the script. builtin: the dataset that the task's embedded base was trained on.
        folders: the dataset that ``--retention_dir`` alone means.
        ignored_by: the flags that have no effect with a dataset, without ``train_`` and the like.
        needs_folder: whether a dataset needs its folder.
    """

    task: str
    builtin: str
    folders: str
    ignored_by: Callable[[str], frozenset[str]]
    needs_folder: Callable[[str], bool]


# Flags of the data to train on that hold for the old data, too.
_SHARED = frozenset({"download", "image_column", "label_column", "cache_dir", "on_bad_image"})


@dataclass(kw_only=True)
class RetentionOptions:
    """Whether retention is measured, and on what; a config that inherits them says of its datasets in ``old_data``."""

    group: ClassVar[str] = "evaluation"
    old_data: ClassVar[OldData]

    retention: bool = option(
        False,
        "also measure, before and after, how well the base's own task on its old data still works",
        may_change=True,
    )
    retention_dataset: str | None = option(
        None, "the base's old data, named as the data to train on (default: what an embedded base was trained on)",
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
            raise InputError(f"--retention_dataset {name} needs --retention_dir: the folder that it is in")

    @property
    def is_base_embedded(self) -> bool:
        """Whether the base comes with the package."""
        task = self.old_data.task
        own = embedded.resolve(task, embedded.name_of(task))
        return embedded.resolve(task, self.pretrained_model_name_or_path) == own

    def _usual_old_data(self) -> str:
        if self.retention_dir is not None:
            return self.old_data.folders
        if self.is_base_embedded:
            return self.old_data.builtin
        raise InputError(
            f"--retention: what {self.pretrained_model_name_or_path} was trained on is not known here; give its old data "
            "with --retention_dataset and --retention_dir"
        )

    def ignored_flags(self, ignored: frozenset[str]) -> frozenset[str]:
        """Those of the flags that the data to train on ignores that the old data has no use for either."""
        if not self.retention:
            return ignored
        return ignored - (_SHARED - self.old_data.ignored_by(self.retention_dataset))
