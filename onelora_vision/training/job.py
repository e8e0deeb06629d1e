"""A whole run, the same for every task: evaluate the base, train, save, evaluate again, draw and report.

Each phase is on disk before the next begins, so a later failure loses no results. A resumed run only does what is
missing.
"""

import shutil
import tempfile
from pathlib import Path

from peft import set_peft_model_state_dict
from torch.utils.data import Dataset

from onelora_vision.adapters.file import read_adapter, require_readable
from onelora_vision.data.stream import identity_of
from onelora_vision.errors import InputError, nearest
from onelora_vision.metrics.direction import is_beside, is_retention
from onelora_vision.tasks.base import FOR_THE_CARD, Task
from onelora_vision.tasks.retention import Retention
from onelora_vision.training.config import TrainingConfig
from onelora_vision.training.evaluation import evaluate, evaluating
from onelora_vision.training.html_report import REPORT, render_report
from onelora_vision.training.loop import require_resumable, train
from onelora_vision.training.optim import trained_parameters
from onelora_vision.training.record import Record
from onelora_vision.training.report import plot_loss, print_outcome, publish
from onelora_vision.training.results import RESULTS
from onelora_vision.training.setup import Run
from onelora_vision.training.validation_loss import WatchedSamples


def run_job(
    run: Run,
    task: Task,
    dataset: Dataset,
    test_loader=None,
    validation_loader=None,
    watched: WatchedSamples | None = None,
    retention: Retention | None = None,
) -> dict:
    """Run a task through all phases (`results.PHASES`).

    Args:
        dataset: the training data, see `loop.train`.
        test_loader: data for the metrics before and after training, passed to ``task.evaluate``.
        validation_loader: data for evaluations during training, which select the best adapter.
        watched: the validation loss is measured on some of these samples.
        retention: evaluates what the base still knows, along with the metrics before and after.

    Returns the content of ``results.json``.

    Raises:
        InputError, TrainingError, Stopped: see `loop.train` and `setup.Run.phase`.
    """
    accelerator = run.accelerator
    if retention is not None:
        task.info.extra["retention"] = retention.protocol
    with run.phase("preparing the run"):
        if run.config.peft_config:
            require_readable(task.adapted.active_peft_config)
        require_resumable(run, task, dataset)
        old_data = {"old data": retention.identity} if retention else {}
        record = Record.open(run, task, task.identity() | identity_of(dataset) | old_data)
        record.held_out = watched is None or watched.held_out
    with run.phase("measuring the base"):
        if not record.has("baseline"):
            record.before = _measured(run, task, test_loader, retention)
            record.save_details("before", task.details)
            record.reach("baseline")
        _check_metric(run.config, record.before)
        run.kept = f"the metrics of the base are in {Path(run.config.output_dir) / RESULTS}"
    with run.phase("training"):
        record.summary = train(run, task, dataset, validation_loader, watched)
    task.info.extra.setdefault("training", {})["steps"] = record.summary.steps
    with run.phase("saving the adapter"):
        is_saved = record.has("trained") and (run.folder.path / "adapter").is_dir()
        if not is_saved:
            run.save_adapter(task, "adapter")
            record.reach("trained")
    run.kept = f"the trained adapter is in {Path(run.config.output_dir) / 'adapter'}"
    with run.phase("measuring the result"):
        if not record.has("evaluated"):
            record.after = _measured(run, task, test_loader, retention)
            record.save_details("after", task.details)
            record.best = _best(run, task, record, test_loader, validation_loader, retention)
            record.reach("evaluated")
    task.info.metrics = {"before": record.before, "after": record.after}
    with run.phase("drawing"):
        if not (is_saved and record.has("drawn")):
            _draw(run, task, record)
            record.reach("drawn")
    with run.phase("publishing"):
        if accelerator.is_main_process and run.config.push_to_hub and not record.published:
            record.published = publish(run.config)
    with run.phase("writing the report"):
        if accelerator.is_main_process:
            with run.folder.writing(REPORT) as path:
                path.write_text(
                    render_report(record.content(), run.folder.path, task.info, run.config), encoding="utf-8"
                )
        record.reach("complete")
    if accelerator.is_main_process:
        print_outcome(record.content(), run.config.output_dir)
    return record.content()


def _measured(run: Run, task: Task, loader, retention: Retention | None) -> dict[str, float]:
    """The metrics of the task in its current state, and of what the base still knows."""
    return evaluate(task, loader, run.accelerator, run.config.seed) | _retained(run, task, retention)


def _retained(run: Run, task: Task, retention: Retention | None) -> dict[str, float]:
    if retention is None:
        return {}
    with evaluating(task, run.accelerator, run.config.seed):
        return retention(run.accelerator)


def _check_metric(config: TrainingConfig, metrics: dict[str, float]) -> None:
    """Refuse a ``metric_for_best_model`` that evaluations do not compute, before training starts."""
    name = config.metric_for_best_model
    known = [metric for metric in metrics if not (is_retention(metric) or is_beside(metric))]
    if name is not None and name not in known:
        raise InputError(f"--metric_for_best_model {name} is not evaluated here{nearest(name, known, 'metric')}")


def _best(
    run: Run, task: Task, record: Record, test_loader, validation_loader, retention: Retention | None
) -> dict | None:
    """The metrics of the best adapter on the test data, and its step; also writes them into its model card."""
    summary = record.summary
    if summary.best_step is None:
        return None
    known = dict(summary.evaluations)[summary.best_step] if validation_loader is test_loader else None
    if known is not None and retention is None:
        return {"step": summary.best_step, "metrics": known}
    last = {name: parameter.detach().clone() for name, parameter in trained_parameters(task.adapted).items()}
    set_peft_model_state_dict(task.adapted, read_adapter(run.folder.path / "best").tensors)
    metrics = known or evaluate(task, test_loader, run.accelerator, run.config.seed)
    metrics = metrics | _retained(run, task, retention)
    task.info.metrics = {"before": record.before, "after": metrics}
    run.save_adapter(task, "best")
    task.adapted.load_state_dict(last, strict=False)
    return {"step": summary.best_step, "metrics": metrics}


def _draw(run: Run, task: Task, record: Record) -> None:
    """Write the task's pictures and the loss curve, and the adapter's model card with all of them."""
    details = record.load_details("before"), record.load_details("after")
    with tempfile.TemporaryDirectory(prefix="onelora-report-") as place:
        folder, step = Path(place), record.summary.steps
        with evaluating(task, run.accelerator, run.config.seed):
            task.report(folder, step, *details, run.accelerator)
        if not run.accelerator.is_main_process:
            return
        plot_loss(folder / "loss.png", record.summary.history, record.summary.validation_losses, record.held_out)
        files = sorted(filter(Path.is_file, folder.iterdir()), key=lambda file: (file.name == "loss.png", file.name))
        for file in files:
            with run.folder.writing(file.name) as path:
                shutil.copyfile(file, path)
        others = {file.name: file for file in (folder / FOR_THE_CARD).glob("*.png")}
        pictures = tuple(others.get(file.name, file) for file in files if file.suffix == ".png")
        run.save_adapter(task, "adapter", pictures)
