"""``--report_to jsonl``: a run's metrics as JSON lines that other programs can follow."""

import json
import time
from pathlib import Path

from accelerate.tracking import GeneralTracker

from onelora_vision.storage.files import atomic_file

METRICS_FILE = "metrics.jsonl"


class MetricsFile(GeneralTracker):
    """Appends to `METRICS_FILE`: one object per call with ``step``, ``time`` (seconds since 1970) and the metrics.

    Args:
        folder: of the file; created if it does not exist.
    """

    name = "jsonl"
    requires_logging_directory = True
    main_process_only = True

    def __init__(self, folder: str | Path):
        super().__init__()
        self.path = Path(folder) / METRICS_FILE

    @property
    def tracker(self) -> Path:
        return self.path

    def store_init_configuration(self, values: dict) -> None:
        """The run's config is in its ``config.yaml``."""

    def rewind(self, step: int) -> None:
        """Drop what a killed run logged after ``step``, its last checkpoint, since it will be logged again."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        with atomic_file(self.path) as temporary:
            temporary.write_text("".join(line for line in lines if _step_of(line) <= step), encoding="utf-8")

    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        line = json.dumps({"step": step, "time": time.time(), **values})
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # cut off when the run was killed
        return float("inf")
