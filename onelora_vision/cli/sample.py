"""``onelora sample``: draw images of an adapter's classes, as PNG files, a grid and an npz file.

The folder holds the samples of one request, described in ``samples.json``. Repeating the command draws missing images,
for example after an interruption. Another request needs another folder, or ``--overwrite``, which first deletes the
earlier samples. The grid is for viewing; it is in ``sheets/`` and never counts as a sample.
"""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path

from onelora_vision.cli.inputs import add_device, require_adapter
from onelora_vision.cli.output import add_output
from onelora_vision.diffusion.settings import MAX_SEED, SamplingSettings, parse_numbers
from onelora_vision.errors import InputError, nearest
from onelora_vision.inference.record import SampleRecord, UsedAdapter

FORMATS = ("png", "grid", "npz")
KIND = "samples"
EXAMPLES = """examples:
  onelora sample output/dit/adapter -o images
  onelora sample output/dit/adapter -o images --classes 3,7 --num_images 8 --steps 50
  onelora sample output/dit/adapter -o base-images --without_adapter --guidance_scale 1
"""
MOST_ROWS, MOST_COLUMNS = 50, 16  # of the grid
REQUEST, GRID, ARCHIVE = "samples.json", "sheets/grid.png", "samples.npz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("adapter", help="adapter folder, .safetensors file or hub id, of a generation model")
    add_output(parser, "folder for the images; repeat the command to draw missing ones")
    parser.add_argument("--classes", help="class names or numbers, with commas (default: all)")
    parser.add_argument(
        "--num_images", "--num-images", type=int, default=4, help="images of each class (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first image of each class (default: %(default)s)"
    )
    parser.add_argument(
        "--formats", default="png,grid", help="of png, grid and npz (ADM's layout), with commas (default: %(default)s)"
    )
    model = parser.add_argument_group("model")
    model.add_argument("--base", help="folder or hub id of the base model (default: what the adapter names)")
    model.add_argument(
        "--without_adapter", "--without-adapter", action="store_true", help="draw with the base model alone"
    )
    sampling = parser.add_argument_group("sampling", "By default the settings that the adapter was evaluated with.")
    sampling.add_argument(
        "--sampler", help="dpm++, ddim or ddpm for a DiT; heun, euler or sde for a SiT; auto: the first of these"
    )
    sampling.add_argument("--steps", type=int, help="denoising steps")
    sampling.add_argument(
        "--guidance_scale", "--guidance-scale", type=float, help="classifier-free guidance scale; 1: no guidance"
    )
    guided_by = sampling.add_mutually_exclusive_group()
    guided_by.add_argument(
        "--guidance_base",
        "--guidance-base",
        action="store_true",
        default=None,
        help="guide away from the frozen base instead of the adapted model's null class",
    )
    guided_by.add_argument(
        "--no_guidance_base",
        "--no-guidance-base",
        dest="guidance_base",
        action="store_false",
        help="guide away from the adapted model's null class",
    )
    sampling.add_argument(
        "--guidance_channels", "--guidance-channels", type=int, help="guide only the first N latent channels"
    )
    sampling.add_argument(
        "--guidance_interval", "--guidance-interval", help="guide only this part of the timesteps, such as 0.1,0.8"
    )
    hardware = parser.add_argument_group("hardware")
    hardware.add_argument(
        "--batch_size", "--batch-size", type=int, default=64, help="images at a time (default: %(default)s)"
    )
    add_device(hardware)


def run(args: argparse.Namespace) -> dict:
    formats = args.formats.split(",")
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"--formats: no format {name!r}{nearest(name, FORMATS, 'format')}")
    for flag in ("num_images", "batch_size"):
        if getattr(args, flag) < 1:
            raise InputError(f"--{flag} is {getattr(args, flag)}, but must be at least 1")
    if not 0 <= args.seed <= MAX_SEED - args.num_images:
        raise InputError(f"--seed is {args.seed}, but must be from 0 to {MAX_SEED - args.num_images}")
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(SamplingSettings)}
    given = {name: value for name, value in given.items() if value is not None}
    if "guidance_interval" in given:
        given["guidance_interval"] = parse_numbers(args.guidance_interval, "--guidance_interval", count=2)
    SamplingSettings(**given).require_effect()  # raises if the settings are invalid
    if args.guidance_base and args.without_adapter:
        raise InputError(
            "--guidance_base has no effect with --without_adapter: the base is guided by its own null class"
        )
    adapter = require_adapter(args.adapter)
    from onelora_vision.backbones.dit import DiTBase, class_ids
    from onelora_vision.diffusion.sampling import fitting
    from onelora_vision.inference.loading import load_adapted
    from onelora_vision.metrics.generative import weights_hash
    from onelora_vision.storage.outputs import check_folder

    # Only after loading the adapter is it known whether the folder's samples belong to this request.
    inputs = [path for path in (args.adapter, args.base) if path]
    check_folder(args.output, KIND, overwrite=True, inputs=inputs)
    generator = load_adapted(adapter, args.base, args.device, task=DiTBase.task)
    chosen = list(range(len(generator.class_names))) if args.classes is None else args.classes.split(",")
    ids = list(dict.fromkeys(class_ids(chosen, generator.class_names)))
    labels = [label for label in ids for _ in range(args.num_images)]
    seeds = [args.seed + number for _ in ids for number in range(args.num_images)]
    wanted = dataclasses.replace(generator.settings, **given)
    settings = fitting(wanted, generator.base.model.config.in_channels, generator.base.schedule)
    if not args.without_adapter:
        generator.check(settings, "--guidance_scale")
    if args.guidance_base:
        settings.require_effect()
    settings = dataclasses.replace(settings, guidance_base=settings.uses_base and not args.without_adapter)
    record = SampleRecord(settings, (UsedAdapter(str(args.adapter)),), adapted=not args.without_adapter)
    names = [generator.class_names[label] for label in ids]
    drawn = {
        "adapter_hash": _hash_of(adapter),
        "base_hash": f"{generator.base.fingerprint()}-{weights_hash(generator.base.vae)}",
        "classes": names,
        "num_images": args.num_images,
        "seed": args.seed,
    }
    ledger = _open_folder(args, {**record.to_json(), **drawn})
    pixels = _draw(generator, labels, seeds, record, args, ledger if "png" in formats else None)
    if "grid" in formats:
        _write_grid(pixels, names, seeds[: args.num_images], record, ledger)
    if "npz" in formats:
        _write_archive(pixels, labels, ledger)
    return {"output": args.output, "images": len(labels), "classes": names, "settings": record.to_json()}


def show(result: dict, args: argparse.Namespace) -> None:
    settings = " ".join(f"{name}={value}" for name, value in result["settings"].items())
    print(f"{result['output']}: {result['images']} images of {len(result['classes'])} classes\n{settings}")


def _hash_of(adapter: Path) -> str:
    """Hash the content of an adapter, since another one may be at the same path next time."""
    from onelora_vision.adapters.container import WEIGHTS_FILE
    from onelora_vision.data.content import content_hash

    return content_hash(adapter / WEIGHTS_FILE if adapter.is_dir() else adapter)


def _open_folder(args: argparse.Namespace, request: dict):
    """Open the ledger of the output folder, after making sure that it only holds samples of this request, if any.

    Raises:
        InputError: the folder holds samples of another request, and ``--overwrite`` is not given.
    """
    from onelora_vision.storage.files import clear_leftovers, write_json
    from onelora_vision.storage.outputs import Ledger, check_folder

    request = json.loads(json.dumps(request))
    place = check_folder(args.output, KIND, overwrite=True)
    ledger = Ledger.read(place)
    is_known = ledger is not None and (place / REQUEST).exists()
    differ = _differences(_request_in(place), request) if is_known else []
    if differ and not args.overwrite:
        raise InputError(
            f"{args.output}: holds samples of another request ({', '.join(differ)} differ); give another folder, or "
            "--overwrite to delete them"
        )
    if differ or not is_known:
        check_folder(args.output, KIND, overwrite=args.overwrite)
        ledger = ledger or Ledger(place, KIND)
        ledger.delete()
        with ledger.writing_file(REQUEST) as temporary:
            write_json(temporary, request)
    clear_leftovers(place)
    return ledger


def _differences(before: dict, now: dict) -> list[str]:
    """The settings in which two requests differ. The adapter's path is ignored, as only its content matters."""
    return sorted(key for key in before.keys() | now.keys() if key != "adapter" and before.get(key) != now.get(key))


def _request_in(folder: Path) -> dict:
    return json.loads((folder / REQUEST).read_text(encoding="utf-8"))


def _draw(generator, labels, seeds, record: SampleRecord, args, ledger):
    """Draw all images, uint8 (N, H, W, 3). With a ``ledger``, each is saved as PNG at once; existing ones are read."""
    import numpy as np

    from onelora_vision.plots.pictures import save_sample
    from onelora_vision.runtime.progress import progress_bar

    names = [f"{label:04d}-{seed:05d}.png" for label, seed in zip(labels, seeds)]
    pixels = {name: _read(ledger.folder / name) for name in names if ledger and (ledger.folder / name).exists()}
    missing = [number for number, name in enumerate(names) if name not in pixels]
    with progress_bar(len(missing), desc="drawing", unit="image", leave=False) as bar:
        chosen = [labels[number] for number in missing], [seeds[number] for number in missing]
        batches = generator.iter_samples(*chosen, record.settings, adapted=record.adapted, batch_size=args.batch_size)
        for number, image in zip(missing, itertools.chain.from_iterable(batches)):
            pixels[names[number]] = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
            if ledger:
                label, seed = labels[number], seeds[number]
                of_image = {"class_name": generator.class_names[label], "label": label, "seed": seed}
                with ledger.writing_file(names[number]) as temporary:
                    save_sample(temporary, image, dataclasses.replace(record, **of_image).to_notes())
            bar.update()
    return np.stack([pixels[name] for name in names])


def _read(path: Path):
    import numpy as np

    from onelora_vision.data.images import read_image

    return np.array(read_image(path))


def _write_grid(pixels, names: list[str], seeds: list[int], record: SampleRecord, ledger) -> None:
    """Write a grid with a row per class and a column per seed. If there are many, some classes and the first seeds."""
    import torch

    from onelora_vision.plots.pictures import save_comparison

    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).unflatten(0, (len(names), len(seeds))) / 255
    count = min(len(names), MOST_ROWS)
    rows = [k * len(names) // count for k in range(count)]
    left_out = [f"{count} of {len(names):,} classes"] * (count < len(names))
    left_out += [f"{MOST_COLUMNS} of {len(seeds):,} seeds"] * (len(seeds) > MOST_COLUMNS)
    settings = record.settings
    how = f"{settings.sampler}, {settings.steps} steps, {settings.guidance_text()}"
    panels = {"adapted" if record.adapted else "base": images[rows, :MOST_COLUMNS]}
    columns = [f"seed {seed}" for seed in seeds[:MOST_COLUMNS]]
    with ledger.writing_file(GRID) as temporary:
        save_comparison(temporary, panels, [names[row] for row in rows], ", ".join([how, *left_out]), columns)


def _write_archive(pixels, labels: list[int], ledger) -> None:
    import numpy as np

    from onelora_vision.data.image_sets import write_npz

    with ledger.writing_file(ARCHIVE) as temporary:
        write_npz(temporary, pixels, np.array(labels))
