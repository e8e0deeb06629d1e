"""``onelora sample``: images of an adapter's classes, as PNG files, a grid and an npz file."""

import argparse
import dataclasses
import json
from pathlib import Path

from onelora_vision.errors import InputError, nearest

FORMATS = ("png", "grid", "npz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="adapter folder or .safetensors file of a generation model")
    parser.add_argument("-o", "--output", required=True, help="folder for the images")
    parser.add_argument("--classes", help="names or numbers with commas (default: all)")
    parser.add_argument("--num_images", "--num-images", type=int, default=4, help="images of each class")
    parser.add_argument("--seed", type=int, default=0, help="seed of a class's first image; the next has the next one")
    parser.add_argument("--formats", default="png,grid", help="of png, grid, npz (ADM's layout)")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--without_adapter", "--without-adapter", action="store_true", help="draw what the base would")
    parser.add_argument("--sampler", help="ddim, dpm++ or ddpm (default: as the adapter was evaluated, as all below)")
    parser.add_argument("--steps", type=int, help="denoising steps")
    parser.add_argument("--guidance_scale", "--guidance-scale", type=float, help="classifier-free guidance; 1: none")
    parser.add_argument(
        "--guidance_channels", "--guidance-channels", type=int, help="guide the first so many channels"
    )
    parser.add_argument(
        "--guidance_interval", "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="share of t"
    )
    parser.add_argument("--batch_size", "--batch-size", type=int, default=64, help="images at a time")
    parser.add_argument("--device", help="cpu, cuda, … (default: cuda if there is one)")


def run(args: argparse.Namespace) -> dict:
    formats = args.formats.split(",")
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"--formats {name!r}{nearest(name, FORMATS, 'format')}")
    for flag in ("num_images", "batch_size"):
        if getattr(args, flag) < 1:
            raise InputError(f"--{flag} is {getattr(args, flag)}, but must be at least 1")
    from onelora_vision.backbones.dit import class_ids
    from onelora_vision.generator import load_generator

    generator = load_generator(args.adapter, args.base, args.device)
    chosen = args.classes.split(",") if args.classes else list(range(len(generator.class_names)))
    ids = class_ids(chosen, generator.class_names)
    labels = [label for label in ids for _ in range(args.num_images)]
    seeds = [args.seed + number for _ in ids for number in range(args.num_images)]
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(generator.settings)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    settings = dataclasses.replace(generator.settings, **{k: v for k, v in given.items() if v is not None})
    notes = {"adapter": str(args.adapter), "adapted": not args.without_adapter, **dataclasses.asdict(settings)}
    pixels = _draw(generator, labels, seeds, settings, args, notes if "png" in formats else None)
    _write_sheets(pixels, labels, formats, args)
    names = [generator.class_names[label] for label in ids]
    return {"output": args.output, "images": len(labels), "classes": names, "settings": notes}


def show(result: dict, args: argparse.Namespace) -> None:
    settings = " ".join(f"{name}={value}" for name, value in result["settings"].items())
    print(f"{result['output']}: {result['images']} images of {len(result['classes'])} classes\n{settings}")


def _draw(generator, labels, seeds, settings, args, notes: dict | None):
    """All images as uint8 (N, H, W, 3); with ``notes`` each is also written as a PNG as soon as it is drawn."""
    import numpy as np
    from tqdm import tqdm

    from onelora_vision.pictures import save_sample

    drawn = []
    with tqdm(total=len(labels), unit="image", leave=False) as bar:
        for start in range(0, len(labels), args.batch_size):
            part = slice(start, start + args.batch_size)
            images = generator.sample(
                labels[part], seeds[part], settings, adapted=not args.without_adapter, batch_size=args.batch_size
            )
            drawn.append((images.permute(0, 2, 3, 1) * 255).round().byte().numpy())
            for image, label, seed in zip(images, labels[part], seeds[part]):
                if notes is not None:
                    path = Path(args.output) / f"{label:04d}-{seed:05d}.png"
                    save_sample(path, image, _notes(seed, label, generator.class_names[label], notes))
            bar.update(len(images))
    return np.concatenate(drawn)


def _notes(seed: int, label: int, name: str, settings: dict) -> dict[str, str]:
    """All that it takes to draw an image again."""
    return {"seed": str(seed), "class": name, "label": str(label), "settings": json.dumps(settings)}


def _write_sheets(pixels, labels, formats, args: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from PIL import Image

    from onelora_vision.data.image_sets import write_npz
    from onelora_vision.files import atomic_file
    from onelora_vision.pictures import tile

    if "grid" in formats:
        sheet = tile(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, args.num_images)
        with atomic_file(Path(args.output) / "grid.png") as temporary:
            image = Image.fromarray((sheet.permute(1, 2, 0) * 255).round().byte().numpy())
            image.save(temporary, format="png")
    if "npz" in formats:
        write_npz(Path(args.output) / "samples.npz", pixels, np.array(labels))
