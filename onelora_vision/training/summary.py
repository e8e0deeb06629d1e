"""The outcome of training, for the rest of the run."""

from dataclasses import dataclass

from onelora_vision.training.checkpoint import Progress


@dataclass(frozen=True)
class TrainingSummary:
    """The outcome of training, over all interruptions.

    Attributes:
        steps, skipped_steps: optimizer steps done, and how many of them were skipped because of a NaN.
        seconds, seconds_per_step: time in steps only, without evaluations and checkpoints.
        data_seconds_per_step: the part of it spent waiting for batches.
        history: per step: loss, grad_norm, learning_rate and whatever else ``forward`` returned.
        evaluations: (step, metrics) of each evaluation during training.
        validation_losses: (step, loss) on the fixed validation samples; empty without any.
        best_step, best_metric: by ``metric_for_best_model``, otherwise None.
    """

    steps: int
    skipped_steps: int
    seconds: float
    seconds_per_step: float
    data_seconds_per_step: float
    history: dict[str, list[float]]
    evaluations: list[tuple[int, dict[str, float]]]
    validation_losses: list[tuple[int, float]]
    best_step: int | None
    best_metric: float | None

    @classmethod
    def of(cls, progress: Progress) -> "TrainingSummary":
        steps = max(progress.step, 1)
        return cls(
            steps=progress.step,
            skipped_steps=progress.skipped_steps,
            seconds=progress.seconds,
            seconds_per_step=progress.seconds / steps,
            data_seconds_per_step=progress.data_seconds / steps,
            history=progress.history,
            evaluations=progress.evaluations,
            validation_losses=progress.validation_losses,
            best_step=progress.best_step,
            best_metric=progress.best_metric,
        )
