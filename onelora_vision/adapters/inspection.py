"""Finding problems in an adapter file, on its own or together with its base."""

import statistics
from collections import Counter
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from onelora_vision.adapters.bases import load_base, other_objective
from onelora_vision.adapters.container import CONFIG_FILE
from onelora_vision.adapters.file import Adapter, read_adapter
from onelora_vision.adapters.kinds import Kind, kind_of
from onelora_vision.adapters.layout import Layout, block_of, layout_of
from onelora_vision.backbones.base import Base, output_of
from onelora_vision.backbones.table import TASKS
from onelora_vision.errors import InputError, listed, one_line
from onelora_vision.storage.safetensors_file import parse_json

PROBLEM, NOTE = "problem", "note"
EXPLODING = 100.0  # times the median of the same part over all layers
NOTICEABLE = 0.1  # smaller values are never reported as exploding, even if the median is tiny
HUGE = 1e3


def examine(path: str | Path, base: str | Path | None = None) -> list[dict]:
    """Check an adapter file, and return findings with ``level`` (problem or note), ``check`` and ``text``.

    With ``base``, the adapter is also attached to it, to check the fingerprint, the fit, the coverage, and whether a
    forward pass calls every adapted layer.
    """
    try:
        adapter = read_adapter(path, finite=False)
    except InputError as error:
        return [_finding("file", str(error))]
    kind, layout = kind_of(adapter.config), layout_of(adapter.config, adapter.tensors)
    findings = [
        *_values(layout),
        *_dead_and_exploding(kind, layout),
        *_precision(layout),
        *_gaps(layout),
        *_header(adapter),
    ]
    return findings + (_on_base(adapter, layout, base) if base is not None else [])


def _finding(check: str, text: str, level: str = PROBLEM) -> dict:
    return {"level": level, "check": check, "text": one_line(text, 600)}


def _values(layout: Layout) -> list[dict]:
    spoilt = {
        name: int((~torch.isfinite(tensor)).sum())
        for name, tensor in layout.to_tensors().items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    }
    return [_finding("nan", f"{name} holds {count} values that are NaN or infinite") for name, count in spoilt.items()]


def _strength(tensor: Tensor, neutral: float) -> float:
    """Root mean square of a tensor's difference from its neutral value."""
    return (tensor.double() - neutral).square().mean().sqrt().item()


def _dead_and_exploding(kind: Kind, layout: Layout) -> list[dict]:
    """Find vectors that never moved from the identity, and vectors far larger than the same part of other layers."""
    strengths: dict[str, dict[str, float]] = {}
    for module, parts in layout.layers.items():
        for part, tensor in parts.items():
            if part in kind.parts and kind.parts[part].neutral is not None:
                strengths.setdefault(part, {})[module] = _strength(tensor, kind.neutral(part))
    findings = []
    for part, by_module in strengths.items():
        dead = [module for module, strength in by_module.items() if strength == 0]
        if dead:
            findings.append(_finding("dead", f"{part} of {listed(dead, 4)} changes nothing: it was never trained"))
        alive = [strength for strength in by_module.values() if 0 < strength < float("inf")]
        typical = statistics.median(alive) if alive else 0.0
        for module, strength in by_module.items():
            is_outlier = len(alive) > 2 and strength > max(EXPLODING * typical, NOTICEABLE)
            if strength < float("inf") and (strength > HUGE or is_outlier):
                findings.append(_finding("exploding", f"{part} of {module}: rms {strength:.3g}, median {typical:.3g}"))
    return findings


def _precision(layout: Layout) -> list[dict]:
    low = [
        module
        for module, parts in layout.layers.items()
        if any(tensor.element_size() < 4 for tensor in parts.values())
    ]
    if not low:
        return []
    return [
        _finding("dtype", f"{len(low)} layers are below fp32 ({listed(low, 4)}): fine for use, not for training", NOTE)
    ]


def _gaps(layout: Layout) -> list[dict]:
    """Find layers that are adapted in some blocks but not in all."""
    places: dict[str, set[int]] = {}
    for module in layout.layers:
        block = block_of(module)
        if block is not None:
            places.setdefault(module.replace(f".{block}.", ".*.", 1), set()).add(block)
    every = set().union(*places.values()) if places else set()
    findings = []
    for pattern, blocks in places.items():
        if missing := sorted(every - blocks):
            text = f"{pattern} is adapted in {len(blocks)} of {len(every)} blocks, not in {listed(map(str, missing))}"
            findings.append(_finding("coverage", text, NOTE))
    return findings


def _header(adapter: Adapter) -> list[dict]:
    info, findings = adapter.info, []
    missing = [name for name in ("task", "method", "base", "base_fingerprint") if not getattr(info, name)]
    if missing:
        findings.append(_finding("header", f"the header does not say {', '.join(missing)}", NOTE))
    if info.task and info.task not in TASKS:
        text = f"task {info.task!r} is not one that adapters are used for here ({', '.join(TASKS)})"
        findings.append(_finding("header", text))
    names = info.class_names or []
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        findings.append(_finding("classes", f"several classes are called {listed(repeated, 4)}"))
    return findings + _config_twice(adapter)


def _config_twice(adapter: Adapter) -> list[dict]:
    """Compare the two configs of a folder: the one in its config file, which was read, and the copy in the header."""
    beside = adapter.path / CONFIG_FILE
    if not adapter.header_config or not beside.is_file():
        return []
    try:
        inside = parse_json(adapter.header_config)
    except ValueError as error:
        return [_finding("config", f"the copy of {CONFIG_FILE} in the header is not JSON ({one_line(error)})")]
    if not isinstance(inside, dict):
        return [_finding("config", f"the copy of {CONFIG_FILE} in the header is not a config")]
    record = parse_json(beside.read_text(encoding="utf-8"))
    differ = {key for key in record | inside if record.get(key) != inside.get(key)}
    return (
        [_finding("config", f"{CONFIG_FILE} and the copy in the header differ in {listed(differ)}")] if differ else []
    )


def _on_base(adapter: Adapter, layout: Layout, place: str | Path) -> list[dict]:
    try:
        base = load_base(adapter.info, place)
    except InputError as error:
        return [_finding("base", str(error))]
    expected, findings, found = adapter.info.base_fingerprint, [], base.fingerprint()
    if expected and expected != found:
        text = f"{place} is another base: fingerprint {found}, trained on {expected} ({adapter.info.base})"
        findings.append(_finding("base", text))
    if reason := other_objective(adapter.info, base):
        findings.append(_finding("objective", reason))
    linears = {name for name, module in base.model.named_modules() if isinstance(module, nn.Linear)}
    inside = {name for name in linears if block_of(name) is not None}
    if layout.layers and (bare := sorted(inside - set(layout.layers) - set(layout.whole))):
        text = f"{len(bare)} of {len(inside)} linear layers in the base's blocks have no adapter: {listed(bare, 4)}"
        findings.append(_finding("coverage", text, NOTE))
    try:
        passed_by = _not_called(adapter, base)
    except InputError as error:
        return [*findings, _finding("fit", str(error))]
    if passed_by:
        text = f"the base does not call {listed(passed_by, 4)} (it reads their weights), so these change nothing"
        findings.append(_finding("bypassed", text))
    return findings


@torch.no_grad()
def _not_called(adapter: Adapter, base: Base) -> list[str]:
    """Find adapted layers that a forward pass of the base does not call."""
    model, called = adapter.attach(base.model).eval(), set()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, module in layers.items():
        module.register_forward_hook(lambda *_, name=name: called.add(name))
    output_of(model, base.example())
    return [name.removeprefix("base_model.model.") for name in layers if name not in called]
