"""``onelora predict`` for classification: the most probable classes of pictures."""

import argparse
import itertools

from onelora_vision.cli.predictions.inputs import pictures_of, refuse_for_pictures
from onelora_vision.data.images import read_images, trimmed
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from onelora_vision.runtime.progress import progress_bar

BATCH = 32


def predict(args: argparse.Namespace) -> list[dict]:
    """Return the ``args.top`` (or 5) most probable classes of each picture, for printing."""
    paths = pictures_of(args.inputs)
    refuse_for_pictures(args.max_new_tokens, args.adapter)
    _refuse_depths_flags(args)
    classifier, rows = load_adapted(args.adapter, args.base, args.device), []
    readable = read_images(paths, args.on_bad_image)
    with progress_bar(len(paths), desc="classifying", unit="image", leave=False) as bar:
        while batch := list(itertools.islice(readable, BATCH)):
            pictures = [trimmed(picture, path) for path, picture in batch]
            found = classifier.classify(pictures, top=args.top or 5, batch_size=BATCH)
            for (path, _), classes in zip(batch, found):
                named = [{"name": name, "probability": share} for name, share in classes]
                rows.append({"image": path, "classes": named})
            bar.update(len(batch))
    return rows


def _refuse_depths_flags(args: argparse.Namespace) -> None:
    for name in ("output", "overwrite", "npy", "near", "far"):
        if getattr(args, name) not in (None, False):
            raise InputError(f"--{name} is for depth; {args.adapter} is for classification, and classes are printed")
