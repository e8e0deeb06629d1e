"""Tries every method on a small model: what it supports, and what it trains on a real model.

    python -m benchmarks.methods --output docs/methods-table.md     # the table in the documentation

Each cell is the outcome of an attempt on a small vision transformer with random weights, not a claim: the loss falls by
a tenth in a few steps; the initial output equals the base's; the file, when read again, gives the same outputs; a
second model from the same seed has the same frozen values, which checkpoints omit; merged weights give the same
outputs; stock PEFT can load the adapter, or it can become a LoRA; its parameters can be counted without weights. The
counts are those of `onelora params`.
"""

import argparse
import copy
import tempfile
import warnings
from pathlib import Path

import timm
import torch
from peft import PeftModel
from torch import nn

from onelora_vision.adapters.file import read_adapter, save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.backbones.vit import vit_adaptation
from onelora_vision.budget.parameters import count
from onelora_vision.errors import InputError, NotApplicable
from onelora_vision.methods.apply import apply_method
from onelora_vision.methods.names import METHODS, Method
from onelora_vision.plots.tables import markdown_lines
from onelora_vision.seeding import seeded
from onelora_vision.storage.files import atomic_file

BACKBONE = "vit-b-16"
STEPS, RATE = 40, 1e-2
COLUMNS = ("method", "trains in each layer", "adapter parameters", "starts at the base", "trains", "saved and read",
           "resumes", "merges", "without this package", "planned")  # fmt: skip
HEAD = f"""# All methods

`--method NAME` for each row; `--rank` sets the rank for methods that have one, and `--peft_config FILE` takes any other
settings. The counts are for {BACKBONE}, without the head, at the preset's settings. The table is made by

<!-- needs: time -->
```bash
python -m benchmarks.methods --output docs/methods-table.md
```

which tries every method on a small vision transformer with random weights (40 steps of AdamW, seed 0). "LoRA" and
"MiSS": formats that `onelora export` writes for stock PEFT and diffusers; "PEFT": stock PEFT loads the folder
unchanged; "merged": only the merged model. A dash in "planned": the method starts from the base's weights, which
`onelora params` and `plan` do not have. "no" in "starts at the base": the method starts with a small change by design.

"""


def main(argv: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="all", help="comma-separated names")
    parser.add_argument("--output", help="Markdown file for the table")
    parser.add_argument("--quick", action="store_true", help="two methods, to test the script")
    args = parser.parse_args(argv)
    names = list(METHODS) if args.methods == "all" else args.methods.split(",")
    names = ["onelora", "lokr"] if args.quick else names
    rows = [try_method(METHODS[name]) for name in names]
    table = markdown(rows)
    print(table)
    if args.output:
        with atomic_file(args.output) as temporary:
            temporary.write_text(HEAD + table + "\n", encoding="utf-8")
    return rows


def small_model() -> nn.Module:
    """Four heads of 16, two blocks, five classes, with weights from a fixed seed."""
    with seeded(0):
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=4, num_classes=5
        )
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):  # otherwise the sums behind them would be rounding errors
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def put_on(row: Method) -> PeftModel:
    """The method on the small model."""
    model = small_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return apply_method(model, row.name, vit_adaptation(model)).eval()


def try_method(row: Method) -> dict[str, str]:
    """One row of the table."""
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 5
    base, model = small_model()(images), put_on(row)
    found = {"method": f"`{row.name}`", "trains in each layer": row.trains, "adapter parameters": _count(row)}
    found["starts at the base"] = _yes(_near(model(images), base))
    frozen = {name: value.clone() for name, value in model.state_dict().items()}
    again = put_on(row).state_dict()
    found["resumes"] = _yes(all(torch.equal(frozen[name], again[name]) for name in frozen))
    losses = _fit(model, images, labels)
    found["trains"] = _yes(min(losses) < 0.9 * losses[0])
    expected = model(images)
    with tempfile.TemporaryDirectory() as place:
        save_adapter(model, Path(place) / "adapter", AdapterInfo("classification", row.name, "small"))
        adapter = read_adapter(Path(place) / "adapter")
        found["saved and read"] = _yes(_near(adapter.attach(small_model()).eval()(images), expected, 1e-5))
    try:
        found["merges"] = _yes(_near(copy.deepcopy(model).merge_and_unload()(images), expected, 1e-3))
    except NotImplementedError:
        found["merges"] = "no"
    found["without this package"] = _outside(row, adapter, found["merges"])
    found["planned"] = "–" if found["adapter parameters"] == "–" else "yes"
    return {name: found[name] for name in COLUMNS}


def _fit(model: PeftModel, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, RATE, weight_decay=0), []
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _outside(row: Method, adapter, merges: str) -> str:
    kind = kind_of(adapter.config)
    if row.name == "onelora":
        return "MiSS, LoRA"
    if not kind.is_ours:
        return "PEFT, LoRA" if kind.low_rank and not getattr(adapter.config, "use_dora", False) else "PEFT"
    convertible = kind.low_rank and "scale" not in row.parts and row.parts
    return "LoRA" if convertible else "merged" if merges == "yes" else "no"


def _count(row: Method) -> str:
    try:
        return f"{count(BACKBONE, row.name, num_classes=100)['adapter_parameters']:,}"
    except NotApplicable:
        return "–"
    except InputError as error:
        return f"refused: {error}"


def _near(output: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((output - expected).abs().max() <= tolerance * expected.abs().max())


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def markdown(rows: list[dict[str, str]]) -> str:
    """The table."""
    return "\n".join(markdown_lines(COLUMNS, (row.values() for row in rows)))


if __name__ == "__main__":
    main()
