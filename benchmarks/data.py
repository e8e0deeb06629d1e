"""How long training waits for data, with and without the latent cache, at the size of DiT-XL/2-256.

    python -m benchmarks.data --images 256 --batch_size 32 --batches 20 --num_workers 8     # on a GPU
    python -m benchmarks.data                                                               # a few steps on a CPU

Images of 512 x 384 pixels, as in Food-101, are cropped to 256 and encoded by an autoencoder with the architecture of
sd-vae-ft-ema and random weights. A step is 1LoRA's on the network: forward, backward and AdamW. "waits": time that
training waits for the loader; "encodes": time for the autoencoder, none with the cache.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image

from benchmarks.subjects import adapted, device_name, make_subject, synchronize, training_step
from onelora_vision.budget.memory import PRECISIONS
from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.generation import SquareCrop
from onelora_vision.data.latents import cache_latents, posterior
from onelora_vision.data.stream import TrainingBatchSampler, training_loader
from onelora_vision.metrics.generative import weights_hash
from onelora_vision.storage.files import write_json

AUTOENCODER = (128, 256, 512, 512)  # channels of sd-vae-ft-ema: 83.7M parameters


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="dit-xl-2", help="a DiT for latents of 32 x 32")
    parser.add_argument("--blocks", type=int, default=0, help="transformer blocks; 0: all")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--batches", type=int, default=3, help="steps to time, after a first one")
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--quick", action="store_true", help="small networks, to test the script")
    args = parser.parse_args(argv)
    if args.quick:
        args.backbone, args.blocks, args.images, args.batches = "dit-s-8", 1, 2, 1
    return args


def main(argv: list[str] | None = None) -> dict:
    args, accelerator = parse(argv), Accelerator()
    vae = autoencoder((32,) * 4 if args.quick else AUTOENCODER).to(accelerator.device)
    subject = make_subject(args.backbone, args.precision, blocks=args.blocks or None)
    model = adapted(subject, "onelora")
    with tempfile.TemporaryDirectory() as folder:
        images = ClassImageDataset(write_images(Path(folder), args.images), SquareCrop(256, random_flip=True))
        started = time.perf_counter()
        latents = cache_latents(
            images, vae, weights_hash(vae), Path(folder) / "latents", accelerator, args.batch_size, args.num_workers
        )
        build = time.perf_counter() - started
        rows = {
            "without": timed_steps(model, images, vae, args),
            "with": timed_steps(model, latents, vae, args),
        }
    print(f"{args.backbone}, batches of {args.batch_size}, {args.precision}, {args.num_workers} workers, "
          f"{device_name()}, torch {torch.__version__}; {args.images} images, cached in {build:.1f} s")  # fmt: skip
    print("| cache | s / step | waits for data | encodes | the network's step |\n|---|---|---|---|---|")
    for name, row in rows.items():
        total = sum(row.values())
        shares = " | ".join(f"{100 * row[part] / total:.2f} %" for part in ("waits", "encodes", "step"))
        print(f"| {name} | {total:.3f} | {shares} |")
    result = {**vars(args), "device": device_name(), "build_seconds": build, "seconds": rows}
    if args.output:
        write_json(args.output, result)
    return result


def autoencoder(channels: tuple[int, ...]) -> AutoencoderKL:
    """The architecture of Stable Diffusion's autoencoder, with random weights."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=channels,
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,
    ).eval()


def write_images(folder: Path, count: int) -> ClassImages:
    """JPEG files of smooth random colours."""
    draw, paths = np.random.default_rng(0), []
    for index in range(count):
        small = Image.fromarray(draw.integers(0, 255, (12, 16, 3), dtype=np.uint8))
        paths.append(str(folder / f"{index}.jpg"))
        small.resize((512, 384), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return ClassImages(paths, [0] * count, ["one"], "benchmark", "train")


def timed_steps(model, dataset, vae, args: argparse.Namespace) -> dict[str, float]:
    """Mean seconds per step, by what they are spent on."""
    sampler = TrainingBatchSampler(len(dataset), args.batch_size, args.batches + 1, seed=0)
    batches = iter(training_loader(dataset, sampler, args.num_workers))
    device = next(model.parameters()).device
    spent = {"waits": 0.0, "encodes": 0.0, "step": 0.0}
    for number in range(args.batches + 1):
        clock = [time.perf_counter()]
        batch = next(batches)
        clock.append(time.perf_counter())
        x = latents_of(batch, vae, device)
        synchronize()
        clock.append(time.perf_counter())
        t = torch.full((len(x),), 500, device=device)
        arguments = {"hidden_states": x.to(PRECISIONS[args.precision][0]), "timestep": t, "class_labels": t * 0}
        training_step(model, arguments, args.precision)()
        synchronize()
        clock.append(time.perf_counter())
        if number:  # the first one is for warm-up
            for name, start, end in zip(spent, clock, clock[1:]):
                spent[name] += (end - start) / args.batches
    return spent


@torch.no_grad()
def latents_of(batch: dict, vae, device: torch.device) -> torch.Tensor:
    """Latents as in the task: from the autoencoder, or from the cache."""
    mean, std = posterior(vae, batch["image"]) if "image" in batch else (batch["mean"], batch["std"])
    return (mean + std * torch.randn_like(mean)).to(device) * 0.18215


if __name__ == "__main__":
    main()
