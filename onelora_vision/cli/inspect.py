"""``onelora inspect``: show what an adapter file holds, without its base."""

import argparse

from onelora_vision.cli.inputs import require_adapter
from onelora_vision.cli.output import add_plot
from onelora_vision.errors import listed, one_line
from onelora_vision.storage.outputs import check_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="adapter folder, .safetensors file, .zip or hub id")
    add_plot(parser, "PNG file for a bar chart of the norms per layer")


def run(args: argparse.Namespace) -> dict:
    adapter = require_adapter(args.adapter)
    if args.plot:
        check_file(args.plot, overwrite=args.overwrite, inputs=[adapter])
    from onelora_vision.adapters.summary import inspect, plot_norms

    result = inspect(adapter)
    if args.plot:
        rows = result["rows"] or result["whole"]
        plot_norms(rows, args.plot, f"{result['method']} on {result['base']}")
    return result


def show(result: dict, args: argparse.Namespace) -> None:
    print(
        f"{result['file']}: {result['method'] or 'unnamed method'} ({result['peft_type']}), {result['file_bytes']:,} bytes"
    )
    if result["compression"] not in (None, "sum"):
        print(f"compress {result['compression']}")
    print(f"task     {result['task'] or 'unnamed'}")
    print(f"base     {result['base'] or 'unnamed'}, fingerprint {result['base_fingerprint'] or 'none'}")
    print(f"values   {result['layer_values']:,} in {result['layers']} layers, {result['whole_values']:,} saved whole")
    if result["classes"]:
        print(f"classes  {len(result['classes'])}: {listed(result['classes'], 12)}")
    before, after = (result["metrics"].get(key, {}) for key in ("before", "after"))
    for name, value in after.items():
        print(f"metric   {one_line(name, 60)}: {_shown(before.get(name, '-'))} -> {_shown(value)}")
    if result["protocol"]:
        print(f"protocol {result['protocol']}")
    for key, value in {**result["extra"], **result["versions"]}.items():
        print(f"header   {one_line(key, 60)}: {one_line(value)}")
    rows = result["rows"] + result["whole"]
    width = max((len(f"{row['layer']}.{row['part']}") for row in rows), default=0)
    print(f"\n{'tensor':<{width}} {'shape':>12} {'dtype':>9} {'norm':>10} {'largest':>10}")
    for row in rows:
        name, shape = f"{row['layer']}.{row['part']}", "x".join(map(str, row["shape"]))
        print(
            f"{name:<{width}} {shape:>12} {row['dtype']:>9} {_number(row['norm']):>10} {_number(row['largest']):>10}"
        )


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else one_line(value, 60)


def _number(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.4g}"
