"""Fixed directions for d trained numbers per layer: what each could reach, and what it does reach.

    python -m benchmarks.directions predict --full RUN      # before training with any of them python -m
    benchmarks.directions run depth --flags "--methods rows-ones,rows-singular16,lora --output_dir output/directions"

``predict`` reads the final update ΔW of full fine-tuning of the same base. For every candidate, it gives the share of
the update's squared norm that the best b reaches, Σ_i (ΔW_i · r_i)² / |r_i|² / |ΔW|², averaged over the layers of a
kind and weighted by their updates. ``run`` is ``onelora sweep`` with the candidates as methods, called ``rows-NAME``.
"""

import argparse
import json
import shlex
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.alignment import full_updates, kind
from benchmarks.directions.candidates import CANDIDATES, Rows, rows_of
from benchmarks.directions.tuner import add_candidates
from onelora_vision.adapters.bases import load_base
from onelora_vision.adapters.file import read_adapter
from onelora_vision.cli import sweep as sweep_command
from onelora_vision.errors import InputError
from onelora_vision.plots.tables import markdown_lines
from onelora_vision.runtime.command import exits_cleanly

LORA_RANKS = (1, 4)


def reached(update: Tensor, rows: Rows) -> float:
    """The squared norm of the best diag(b) R for an update (d, k)."""
    matrix = rows.matrix().to(update)
    dots = (update * matrix).sum(-1)
    return (dots.square() / matrix.square().sum(-1).clamp_min(1e-30)).sum().item()


def predict(full: Path, base: str | None = None) -> dict[str, dict[str, float]]:
    """Candidate -> layer kind -> share of the update; ``all``: all layers. Also the best of rank r (k + d each)."""
    adapter = read_adapter(full)
    loaded = load_base(adapter.info, base)
    state = loaded.model.state_dict()
    layers = loaded.adaptation().target_modules
    found: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    total: dict[str, float] = defaultdict(float)
    for name, update in full_updates(adapter, state, layers).items():
        weight = state[f"{name}.weight"].float()
        values = torch.linalg.svdvals(update).square()
        energies = {candidate: reached(update, rows_of(candidate, weight, name)) for candidate in CANDIDATES}
        energies |= {f"best of rank {rank}": values[:rank].sum().item() for rank in LORA_RANKS}
        for place in (kind(name), "all"):
            total[place] += values.sum().item()
            for candidate, energy in energies.items():
                found[candidate][place] += energy
    return {candidate: {place: row[place] / total[place] for place in row} for candidate, row in found.items()}


def table(found: dict[str, dict[str, float]]) -> list[str]:
    """Markdown, greatest share first."""
    places = list(next(iter(found.values())))
    order = sorted(found, key=lambda candidate: -found[candidate]["all"])
    return markdown_lines(
        ["candidate", *places], ([name, *(f"{found[name][place]:.2%}" for place in places)] for name in order)
    )


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("predict", "run"))
    parser.add_argument("task", nargs="?", help="run: classification, depth or dit")
    parser.add_argument("--flags", default="", help="run: flags of onelora sweep, as one string")
    parser.add_argument("--full", type=Path, help="predict: adapter of --method full")
    parser.add_argument("--base", help="predict: location of the base, if different from the one in the adapter")
    parser.add_argument("--json", action="store_true", help="predict: print the shares as JSON")
    arguments = parser.parse_args(argv)
    if arguments.command == "run":
        add_candidates()
        sys.exit(sweep_command.main([*filter(None, [arguments.task]), *shlex.split(arguments.flags)]))
    if arguments.full is None:
        raise InputError("predict needs --full: the adapter of a run with --method full")
    found = predict(arguments.full, arguments.base)
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(table(found)))


if __name__ == "__main__":
    main()
