"""Logs of a run's metrics: accelerate's trackers, opened so that a resumed run continues the same curves."""

from accelerate import Accelerator

from onelora_vision.storage.files import writing
from onelora_vision.training.metrics_file import MetricsFile


def open_trackers(accelerator: Accelerator, step: int) -> None:
    """Open the accelerator's logs at ``step``.

    Raises:
        WriteError: the log folder is not writable.
    """
    if accelerator.log_with:
        # What a killed run logged after its last checkpoint will be logged again.
        with writing(accelerator.logging_dir):
            accelerator.init_trackers("onelora_vision", init_kwargs={"tensorboard": {"purge_step": step + 1}})
            for tracker in accelerator.trackers:
                if isinstance(tracker, MetricsFile):
                    tracker.rewind(step)


def log_metrics(accelerator: Accelerator, kind: str, metrics: dict[str, float], step: int) -> None:
    """Log each metric as ``kind/name``. Raises `WriteError` if the log cannot be written."""
    with writing(accelerator.logging_dir):
        accelerator.log({f"{kind}/{name}": value for name, value in metrics.items()}, step=step)
