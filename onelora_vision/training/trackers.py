"""Where a run's figures are logged: accelerate's trackers, opened so that a resumed run goes on in the same curves."""

from accelerate import Accelerator

from onelora_vision.files import writing


def open_trackers(accelerator: Accelerator, step: int) -> None:
    """Open the logs that the accelerator was made with, at ``step``.

    Raises:
        WriteError: the folder of the logs cannot be written.
    """
    if accelerator.log_with:
        # What a killed run logged after its last checkpoint is logged again.
        with writing(accelerator.logging_dir):
            accelerator.init_trackers("onelora_vision", init_kwargs={"tensorboard": {"purge_step": step + 1}})


def log_figures(accelerator: Accelerator, kind: str, figures: dict[str, float], step: int) -> None:
    """Log each figure as ``kind/name``. Raises `WriteError` when that cannot be written."""
    with writing(accelerator.logging_dir):
        accelerator.log({f"{kind}/{name}": value for name, value in figures.items()}, step=step)
