"""Summary of an adapter file, read from the file alone and without torch."""

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from onelora_vision.adapters.container import CONFIG_FILE, WEIGHTS_FILE, config_record, read_contents
from onelora_vision.adapters.info import HEADER_PREFIX, AdapterInfo
from onelora_vision.adapters.kinds import Kind, kind_of
from onelora_vision.adapters.layout import layout_of
from onelora_vision.compressions import DEFAULT_RANK, Compression
from onelora_vision.errors import InputError, one_line

if TYPE_CHECKING:
    import numpy as np


def inspect(path: str | Path) -> dict:
    """Summarise an adapter file: method, base, classes, metrics, header, and the norms of each layer.

    The ``rows`` have layer, part, shape, dtype, norm and largest absolute value; for gamma, these refer to gamma - 1.
    Whether the values match the config is only checked when the file is used, and by `inspection.examine`.

    Raises:
        InputError: the file cannot be read, or is not an adapter.
    """
    path = Path(path)
    weights, text = read_contents(path)
    config = _config(text or weights.strings.get(HEADER_PREFIX + "config", ""), str(path))
    info, arrays = AdapterInfo.from_header(weights.strings, str(path)), weights.arrays()
    if not arrays:
        raise InputError(f"{path}: holds no tensors")
    kind, layout = kind_of(config), layout_of(config, arrays, str(path))
    for module, parts in layout.layers.items():
        for part, (_, dtype) in parts.items():
            if "float" not in dtype and not kind.is_opaque:
                raise InputError(f"{path}: {module}.{part} is {dtype}, expected a floating-point type")
    rows, whole = _rows(kind, layout.layers), _rows(kind, layout.whole)
    return {
        "file": str(path),
        "file_bytes": (path / WEIGHTS_FILE if path.is_dir() else path).stat().st_size,
        "method": info.method,
        "peft_type": kind.name,
        "compression": _compression(config),
        "task": info.task,
        "base": info.base,
        "base_fingerprint": info.base_fingerprint,
        "layers": len(layout.layers),
        "layer_values": _count(layout.layers),
        "whole_values": _count(layout.whole),
        "values": sum(values.size for values, _ in arrays.values()),
        "classes": info.class_names,
        "null_class": info.null_class,
        "metrics": info.metrics,
        "protocol": info.protocol,
        "extra": info.extra,
        "versions": info.versions,
        "rows": rows,
        "whole": whole,
    }


def _config(text: str, where: str) -> SimpleNamespace:
    """Parse a PEFT config without PEFT."""
    if not text:
        raise InputError(f"{where}: has no {CONFIG_FILE} next to it and no config in its header: not an adapter")
    record = config_record(text, where)
    saved = record.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise InputError(f"{where}: modules_to_save is not a list of names")
    return SimpleNamespace(**{**record, "modules_to_save": saved})


def _compression(config: SimpleNamespace) -> str | None:
    if not kind_of(config).vectors or not getattr(config, "use_sum", True):
        return None
    fields = {"compression": "sum", "compression_seed": 0, "compression_rank": DEFAULT_RANK}
    return Compression(*(getattr(config, name, default) for name, default in fields.items())).key


def _count(modules: dict[str, dict]) -> int:
    return sum(values.size for parts in modules.values() for values, _ in parts.values())


def _rows(kind: Kind, modules: dict[str, dict]) -> list[dict]:
    return [
        {
            "layer": module,
            "part": part,
            "shape": list(values.shape),
            "dtype": dtype,
            **_size_of(values, kind.neutral(part)),
        }
        for module, parts in modules.items()
        for part, (values, dtype) in parts.items()
    ]


def _size_of(values: "np.ndarray", neutral: float) -> dict[str, float | None]:
    """Norm and largest absolute value of a change; None for values that JSON cannot represent."""
    import numpy as np

    with np.errstate(all="ignore"):
        change = values.astype(np.float64).ravel() - neutral
        found = {"norm": float(np.linalg.norm(change)), "largest": float(np.abs(change).max(initial=0.0))}
    return {name: value if value < float("inf") else None for name, value in found.items()}


def plot_norms(rows: Sequence[dict], path: str | os.PathLike, title: str) -> None:
    """Write a PNG with one bar per adapted layer, the norm of its change, in one colour per part."""
    from onelora_vision.plots.figures import saved_figure

    parts = list(dict.fromkeys(row["part"] for row in rows))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    with saved_figure(path, (8, 0.2 * len(layers) * max(1, len(parts)) ** 0.5 + 1.2)) as figure:
        axes = figure.subplots()
        height = 0.8 / max(1, len(parts))
        for number, part in enumerate(parts):
            mine = {row["layer"]: row["norm"] or 0.0 for row in rows if row["part"] == part}
            places = [k + number * height for k, layer in enumerate(layers) if layer in mine]
            axes.barh(places, [mine[layer] for layer in layers if layer in mine], height, label=part)
        axes.set(yticks=range(len(layers)), yticklabels=layers, xlabel="norm (of gamma: of gamma - 1)")
        axes.set_title(one_line(title, 80), parse_math=False)  # file names are not formulas
        axes.tick_params(axis="y", labelsize=6)
        axes.invert_yaxis()
        if len(parts) > 1:
            axes.legend()
