"""How well a single vector compresses full fine-tuning: ``python -m benchmarks.alignment --full DIR --lora DIR``.

1LoRA's update b 1ᵀ reads each layer's input along the vector of ones, ``--compression random`` along a random vector,
``singular`` along the direction that the frozen weight amplifies most, and LoRA of rank 1 along its learned A. For
every layer, this computes the cosine of these with the right singular vectors of the update found by full training of
the same base (the paper's Fig. 9), and the share of the update's squared norm that any b could reach along them, ``|ΔW
v|² / |v|² / |ΔW|²``, compared with that of the best possible vector. Averaged over the layers of a kind.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch

from onelora_vision.adapters.bases import load_base, require_same_base
from onelora_vision.adapters.file import Adapter, read_adapter
from onelora_vision.adapters.layout import layout_of
from onelora_vision.errors import InputError
from onelora_vision.plots.figures import saved_figure
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.tuners.onelora.compression import random_compression, singular_compression

BEST = "best"
_COLUMNS = 5


def full_updates(adapter: Adapter, base_state: dict[str, torch.Tensor], layers) -> dict[str, torch.Tensor]:
    """ΔW (d, k) of those ``layers`` that full training changed."""
    trained = {
        f"{module}.{part}": tensor
        for module, parts in layout_of(adapter.config, adapter.tensors, str(adapter.path)).whole.items()
        for part, tensor in parts.items()
    }
    updates = {name: trained.get(f"{name}.weight") for name in layers}
    return {
        name: weight.float() - base_state[f"{name}.weight"].float()
        for name, weight in updates.items()
        if weight is not None and bool((weight.float() != base_state[f"{name}.weight"].float()).any())
    }


def alignments(update: torch.Tensor, vectors: dict[str, torch.Tensor], top: int) -> dict[str, dict]:
    """``cosines`` and ``share`` of each compression vector (k,), and of the best vector.

    ``cosines`` are the absolute cosines with the first ``top`` right singular vectors of ``update`` (d, k), ``share``
    is the reachable share of its squared norm.
    """
    _, sizes, components = torch.linalg.svd(update, full_matrices=False)
    energy = sizes.square().sum()
    found = {}
    for name, vector in {**vectors, BEST: components[0]}.items():
        unit = vector / vector.norm()
        found[name] = {
            "cosines": (components[:top] @ unit).abs().tolist(),
            "share": ((update @ unit).square().sum() / energy).item(),
        }
    return found


def kind(module: str) -> str:
    """A layer's name without its block: ``blocks.3.attn.qkv`` -> ``attn.qkv``."""
    return ".".join(part for part in module.split(".") if not part.isdigit() and part not in ("blocks", "layer"))


def measure(full: Path, lora: Path, base: str | None = None, top: int = 8, seed: int = 0) -> dict[str, dict]:
    """Layer kind -> vector -> mean ``cosines`` and ``share``, and the number of ``layers``.

    Raises:
        InputError: the adapters are not from these methods, or not for the same base.
    """
    whole, learned = read_adapter(full), read_adapter(lora)
    for adapter, method in ((whole, "full"), (learned, "lora")):
        if adapter.info.method != method:
            raise InputError(f"{adapter.path}: of method {adapter.info.method or 'unknown'}, expected {method}")
    loaded = load_base(whole.info, base)
    for adapter in (whole, learned):
        require_same_base(adapter.info, adapter.path, loaded)
    layers = layout_of(learned.config, learned.tensors, str(lora)).layers
    found = defaultdict(list)
    state = loaded.model.state_dict()
    for name, update in full_updates(whole, state, layers).items():
        features = update.shape[1]
        vectors = {
            "ones": torch.ones(features),
            "random": random_compression(features, seed),
            "singular": singular_compression(state[f"{name}.weight"].float()),
            "learned (LoRA's A)": layers[name]["lora_A.weight"][0].float(),
        }
        found[kind(name)].append(alignments(update, vectors, min(top, *update.shape)))
    return {layer_kind: {"layers": len(rows), **_mean(rows)} for layer_kind, rows in found.items()}


def _mean(rows: list[dict[str, dict]]) -> dict[str, dict]:
    return {
        vector: {
            "cosines": torch.tensor([row[vector]["cosines"] for row in rows]).mean(0).tolist(),
            "share": sum(row[vector]["share"] for row in rows) / len(rows),
        }
        for vector in rows[0]
    }


def table(found: dict[str, dict]) -> list[str]:
    """Markdown: cosine with the first component, and share of the update, per layer kind."""
    vectors = [name for name in next(iter(found.values())) if name != "layers"]
    head = ["layers", *(f"{v}: cosine, share" if v != BEST else "best: share" for v in vectors)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for layer_kind, row in found.items():
        cells = [
            f"{row[v]['cosines'][0]:.2f}, {row[v]['share']:.1%}" if v != BEST else f"{row[v]['share']:.1%}"
            for v in vectors
        ]
        lines.append(f"| {layer_kind} ({row['layers']}) | {' | '.join(cells)} |")
    return lines


def draw(path: Path, found: dict[str, dict]) -> None:
    """One panel per layer kind: cosine with each principal component of the update."""
    columns = min(len(found), _COLUMNS)
    rows = -(-len(found) // columns)
    with saved_figure(path, (2.3 * columns, 2.3 * rows + 0.3)) as figure:
        panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
        for axes in panels[len(found) :]:
            axes.set_axis_off()
        for axes, (layer_kind, row) in zip(panels, found.items()):
            for vector, color in zip(
                (v for v in row if v not in ("layers", BEST)), ("#c0392b", "#7f7f7f", "#148f77", "#1f4e8c")
            ):
                cosines = row[vector]["cosines"]
                axes.plot(range(1, len(cosines) + 1), cosines, marker="o", markersize=3, color=color, label=vector)
            axes.set_title(".".join(layer_kind.split(".")[-2:]), fontsize=9)
            axes.set_ylim(0, 1)
            axes.grid(alpha=0.2)
        figure.supxlabel("principal component of the full update", fontsize=9)
        figure.supylabel("|cosine|", fontsize=9)
        panels[0].legend(frameon=False, fontsize=7)


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", type=Path, required=True, help="adapter of --method full")
    parser.add_argument("--lora", type=Path, required=True, help="adapter of --method lora on the same base")
    parser.add_argument("--base", help="location of the base, if different from the one in the adapters")
    parser.add_argument("--top", type=int, default=8, help="components to compare with")
    parser.add_argument("--plot", type=Path, help="write a PNG")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    found = measure(arguments.full, arguments.lora, arguments.base, arguments.top)
    if arguments.plot:
        draw(arguments.plot, found)
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(table(found)))


if __name__ == "__main__":
    main()
