"""``report.html``: one page about a run, with embedded pictures."""

import dataclasses
import datetime
import json
from pathlib import Path

from onelora_vision.adapters.card import loading_code
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.table import TASKS
from onelora_vision.metrics.direction import RETENTION, arrow, is_beside, is_retention, main_metric
from onelora_vision.plots.html import embedded_picture, render
from onelora_vision.tasks.base import EXAMPLES
from onelora_vision.training.config import TrainingConfig, default_settings
from onelora_vision.training.results import duration, shown_metric, verdict

REPORT = "report.html"
# Captions, in the order of the page.
_PICTURES = {
    "samples": "Samples of the base and of the adapted model on the same noise, next to training images.",
    "pictures": "Images with their true depth, the estimates of the base and the adapted model, and their errors.",
    "predictions": "Predictions of the base and the adapted model for single images; errors are red.",
    "guidance": "Metrics over the guidance scale.",
    "confusion": "True and predicted classes, before and after.",
    "reliability": "Confidence against accuracy, before and after.",
}
_CURVES = {
    True: {"loss": "Training loss, and the loss on fixed held-out samples."},
    False: {"loss": "Training loss, and the loss on fixed training samples, as there is no validation split."},
}


def render_report(results: dict, folder: Path, info: AdapterInfo, config: TrainingConfig) -> str:
    """Render the page.

    Args:
        results: the content of ``results.json``. folder: of the run, with its pictures.
        info: the description in the adapter's files.
    """
    before, after = (results["metrics"][when] for when in ("before", "after"))
    best = results["best"] or {"step": None, "metrics": {}}
    adapter = Path(config.output_dir) / "adapter"
    task = TASKS.get(info.task)
    settings = {name: _text(value) for name, value in dataclasses.asdict(config).items()}
    defaults = {name: _text(value) for name, value in default_settings(type(config)).items()}
    return render(
        REPORT,
        title=f"{info.method} on {info.base or 'a base without a name'}",
        subtitle=f"{info.task or 'fine-tuning'}, seed {results['seed']}, in {config.output_dir}",
        cards=_cards(results),
        metrics=[
            _row(name, before.get(name), after[name], best["metrics"].get(name))
            for name in after
            if not is_beside(name)
        ],
        best_step=best["step"],
        protocol=results["protocol"],
        retention=results.get("retention") and f"{RETENTION}*: {results['retention']}",
        pictures=_shown(folder, _PICTURES),
        curves=_shown(folder, _CURVES[is_held_out(results)]),
        examples=_examples(folder / EXAMPLES),
        loading=loading_code(info, str(adapter)),
        command=(task.command if task else "onelora inspect {adapter}").format(adapter=adapter),
        training=_training(results, adapter),
        versions=list(results["versions"].items()),
        changed=[(name, value) for name, value in settings.items() if value != defaults.get(name)],
        settings=list(settings.items()),
        date=datetime.date.today().isoformat(),
    )


def _cards(results: dict) -> list[tuple[str, str]]:
    before, after = (results["metrics"][when] for when in ("before", "after"))
    main = main_metric(results["task"], after)
    shown = [name for name in (main, next(filter(is_retention, after), None)) if name is not None]
    figures = [
        (f"{name} {arrow(name)}".strip(), f"{shown_metric(before.get(name))} → {shown_metric(after[name])}")
        for name in shown
    ]
    return [
        *figures,
        ("trained parameters", f"{results['trainable_parameters']:,}"),
        ("steps", f"{results['steps']:,}"),
        ("time", duration(results["seconds_total"])),
    ]


def _row(name: str, before: float | None, after: float | None, best: float | None) -> dict[str, str]:
    change = ""
    if before is not None and after is not None:
        share = f" ({(after - before) / abs(before):+.1%})" if abs(after) < 10 * abs(before) else ""
        change = f"{after - before:+.4g}{share}"
    return {
        "name": name,
        "arrow": arrow(name),
        "before": shown_metric(before),
        "after": shown_metric(after),
        "best": shown_metric(best),
        "change": change,
        "verdict": verdict(name, before, after),
    }


def is_held_out(results: dict) -> bool:
    """Whether the validation loss in the results was measured on samples not used for training."""
    return (results["validation_loss"] or {}).get("held_out", True)


def _training(results: dict, adapter: Path) -> list[tuple[str, str]]:
    weights, curve = adapter / "adapter_model.safetensors", results["validation_loss"]
    watched = "validation loss" if is_held_out(results) else "loss on fixed training samples"
    step = results["seconds_per_step"]
    rows = {
        "method": results["method"],
        "trained parameters": f"{results['trainable_parameters']:,}",
        "of them in the adapter": f"{results['adapter_parameters']:,}",
        "adapter file": f"{weights.stat().st_size:,} bytes" if weights.is_file() else "",
        "steps": f"{results['steps']:,}" + f", {results['skipped_steps']} skipped" * bool(results["skipped_steps"]),
        watched: f"{shown_metric(curve['first'])} → {shown_metric(curve['last'])}" if curve else "",
        "run time": duration(results["seconds_total"]),
        "time per step": f"{step:.3g} s" if step else "",
        "peak memory": f"{results['peak_memory_bytes'] / 2**20:,.0f} MiB",
        "uploaded to": results["published"] or "",
    }
    return [(name, value) for name, value in rows.items() if value]


def _shown(folder: Path, captions: dict[str, str]) -> list[dict[str, str]]:
    found = ({"address": embedded_picture(folder / f"{name}.png"), "caption": text} for name, text in captions.items())
    return [picture for picture in found if picture["address"]]


def _examples(path: Path) -> list[dict]:
    """A language model's answers before and after, as saved by `tasks.language`; empty for other tasks."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _text(value: object) -> str:
    if value is None:
        return "none"
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
