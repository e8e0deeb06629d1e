"""``onelora fid``: measure generated images against real ones, or compare the metrics of two runs."""

import argparse

from onelora_vision.cli.inputs import add_device, add_on_bad_image, require_path
from onelora_vision.errors import InputError, nearest
from onelora_vision.metrics import FEATURES
from onelora_vision.metrics.statistics_file import has_images, has_statistics
from onelora_vision.training.results import read_results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "onelora fid REF GEN [--features …] | onelora fid compare A B"
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="two sets of images: folders or npz files, real first; the real ones also as published statistics (npz); or "
        "the word compare and two runs, as folders or results.json",
    )
    parser.add_argument("--features", default="inception", help=", ".join(FEATURES))
    parser.add_argument("--fid_weights", "--fid-weights", help="weights of inception or dinov2: a file, or download")
    parser.add_argument("--fid_timm_model", "--fid-timm-model", help="timm's transformer behind dinov2")
    parser.add_argument("--batch_size", "--batch-size", type=int, default=50, help="images at a time")
    add_on_bad_image(parser)
    add_device(parser)


def run(args: argparse.Namespace) -> dict:
    if args.paths[0] == "compare" and len(args.paths) == 3:
        return compare_runs(*args.paths[1:])
    if len(args.paths) != 2:
        raise InputError("give two sets of images, real first, or compare and two results.json")
    if args.batch_size < 1:
        raise InputError(f"--batch_size is {args.batch_size}, but must be at least 1")
    return measure_sets(args)


def measure_sets(args: argparse.Namespace) -> dict:
    """Compute all metrics of the second set against the first, whose features are cached."""
    if args.features not in FEATURES:
        raise InputError(f"--features {args.features}{nearest(args.features, FEATURES, 'model')}")
    for path in args.paths:
        require_path(path)
    from onelora_vision.data.image_sets import ImageSet
    from onelora_vision.metrics.dinov2 import MODEL
    from onelora_vision.metrics.features import cached_features, open_features, published_features
    from onelora_vision.metrics.generative import collect, compare, figures_alone
    from onelora_vision.runtime.device import choose_device
    from onelora_vision.runtime.progress import progress_bar

    real_path, made_path = args.paths
    is_published = has_statistics(real_path)
    is_shown = not is_published or has_images(real_path)
    if args.features != "inception" and not is_shown:
        raise InputError(f"{real_path}: statistics of InceptionV3's features alone; they need --features inception")
    generated = ImageSet(made_path, args.on_bad_image)
    reference = ImageSet(real_path, args.on_bad_image) if is_shown else None
    features = open_features(args.features, args.fid_weights, args.fid_timm_model or MODEL)
    features.to(choose_device(args.device))

    def measured(images: ImageSet):
        with progress_bar(len(images), desc=str(images.path), unit="image", leave=False) as bar:

            def watched():
                for batch in images.batches(args.batch_size):
                    yield batch
                    bar.update(len(batch))

            return collect(features, watched())

    real = None
    if reference is not None:
        parts = [*reference.hashes, args.on_bad_image]
        real = cached_features(parts, features, lambda: measured(reference))
    if is_published and args.features == "inception":
        real = published_features(real_path, features, real)
    made = measured(generated)
    return {
        "reference": real_path,
        "reference_images": len(real),
        "generated": made_path,
        "generated_images": len(made),
        "features": features.name,
        "weights_hash": features.weights_hash,
        "metrics": compare(made, real, features.name) | figures_alone(made, features),
    }


def compare_runs(first: str, second: str) -> dict:
    """Compare the metrics of two runs.

    Raises:
        InputError: a run's evaluation is incomplete, or the metrics were measured with different protocols; the message
            names the fields that differ.
    """
    results = [read_results(path) for path in (first, second)]
    from onelora_vision.metrics.generative import Protocol

    protocols = [Protocol.parse(result["protocol"]) for result in results]
    protocols[0].require_comparable(protocols[1])
    figures = [result["metrics"]["after"] for result in results]
    return {
        "runs": [{"path": path, "method": result.get("method")} for path, result in zip((first, second), results)],
        "metrics": {name: [part.get(name) for part in figures] for name in {**figures[0], **figures[1]}},
        "protocol": protocols[0].line(),
    }


def show(result: dict, args: argparse.Namespace) -> None:
    if "runs" in result:
        print(f"{'':<24}" + "".join(f"{run['path']:>28}" for run in result["runs"]))
        print(f"{'method':<24}" + "".join(f"{run['method']:>28}" for run in result["runs"]))
        for name, values in result["metrics"].items():
            print(f"{name:<24}" + "".join(f"{'none' if value is None else f'{value:.6g}':>28}" for value in values))
        print(result["protocol"])
        return
    print(f"{result['generated_images']:,} images of {result['generated']}")
    count = f"{result['reference_images']:,}" if result["reference_images"] else "the statistics"
    print(f"against {count} of {result['reference']}")
    for name, value in result["metrics"].items():
        print(f"{name:<24}{value:>14.6g}")
    print(f"features {result['features']}, weights {result['weights_hash']}")
