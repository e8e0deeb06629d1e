"""``onelora params``: count the parameters of methods on a backbone."""

import argparse
import sys
from collections.abc import Iterator

from onelora_vision.cli.output import add_plot
from onelora_vision.errors import InputError, NotApplicable
from onelora_vision.methods.names import METHODS, find_method
from onelora_vision.storage.outputs import check_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", required=True, help="dit-xl-2, vit-b-16, …, a timm name, a folder or a hub id")
    parser.add_argument("--method", default="all", help="a method's name, several with commas, or all that apply")
    parser.add_argument("--num_classes", "--num-classes", type=int, help="classes of the head or label table")
    parser.add_argument(
        "--fuse_qkv", "--fuse-qkv", action="store_true", help="join q, k, v where the host splits them"
    )
    parser.add_argument("--rank", type=int, help="rank, for the methods that have one (default: the method's own)")
    add_plot(parser, "PNG file for a bar chart of the counts")


def run(args: argparse.Namespace) -> list[dict]:
    names = list(METHODS) if args.method == "all" else [name.strip() for name in args.method.split(",")]
    for name in names:
        find_method(name)  # check all names before counting
    if args.num_classes is not None and args.num_classes < 1:
        raise InputError(f"--num_classes is {args.num_classes}, but must be at least 1")
    if args.plot:
        check_file(args.plot, overwrite=args.overwrite)
    rows = list(_rows(args, names))
    if args.plot:
        _plot(rows, args.plot)
    return rows


def _rows(args: argparse.Namespace, names: list[str]) -> Iterator[dict]:
    from onelora_vision.budget.parameters import count

    for name in names:
        try:
            yield count(args.backbone, name, num_classes=args.num_classes, fuse_qkv=args.fuse_qkv, rank=args.rank)
        except NotApplicable as error:
            if args.method != "all":
                raise
            print(f"left out: {error}", file=sys.stderr)


def show(rows: list[dict], args: argparse.Namespace) -> None:
    print(f"{rows[0]['backbone']}: {rows[0]['total_parameters']:,} parameters")
    print(f"{'method':<14}{'layers':>7}{'trained':>14}{'share':>9}{'without head':>14}{'file':>11}{'optimizer':>11}")
    for row in rows:
        share = 100 * row["trainable_parameters"] / row["total_parameters"]
        print(
            f"{row['method']:<14}{row['layers']:>7}{row['trainable_parameters']:>14,}{share:>8.3f}%"
            f"{row['adapter_parameters']:>14,}{_size(row['file_bytes']):>11}{_size(row['optimizer_bytes']):>11}"
        )


def _size(count: int) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} GB"


def _plot(rows: list[dict], path: str) -> None:
    from onelora_vision.plots.figures import saved_figure

    rows = sorted(rows, key=lambda row: row["trainable_parameters"])
    methods, counts = [row["method"] for row in rows], [row["trainable_parameters"] for row in rows]
    with saved_figure(path, (8, 0.4 * len(rows) + 1.2)) as figure:
        axes = figure.subplots()
        axes.bar_label(axes.barh(methods, counts, color="#4c72b0"), [f" {count:,}" for count in counts])
        axes.set(xscale="log", xlabel="trained values", title=f"{rows[0]['backbone']}")
        axes.margins(x=0.2)
        axes.spines[["top", "right"]].set_visible(False)
