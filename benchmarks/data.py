"""Training images per second, with the latent cache and without, at the shape of DiT-XL/2-256.

    python -m benchmarks.data --images 256 --batch_size 32 --num_workers 8     # on a GPU
    python -m benchmarks.data --images 4 --batch_size 2                        # on a CPU

Images of 512 x 384 pixels, as Food-101's are, are cropped to 256 and encoded by an autoencoder of the shape of
sd-vae-ft-ema with random weights; the network's own step is left out. With the cache, the first line is the time to
build it.
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

from onelora_vision.data.class_images import ClassImageDataset, ClassImages
from onelora_vision.data.generation import SquareCrop
from onelora_vision.data.latents import cache_latents, posterior
from onelora_vision.data.stream import TrainingBatchSampler, training_loader
from onelora_vision.metrics.generative import weights_hash


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=8, help="batches that are timed, after a first one")
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--resolution", type=int, default=256)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args, accelerator = parse(argv), Accelerator()
    vae = stable_diffusion_autoencoder().to(accelerator.device)
    with tempfile.TemporaryDirectory() as folder:
        transform = SquareCrop(args.resolution, random_flip=True)
        images = ClassImageDataset(write_images(Path(folder), args.images), transform)
        started = time.perf_counter()
        latents = cache_latents(
            images, vae, weights_hash(vae), Path(folder) / "latents", accelerator, args.batch_size, args.num_workers
        )
        build = time.perf_counter() - started
        plain, cached = (images_per_second(data, vae, accelerator, args) for data in (images, latents))
    print(f"{accelerator.device}, {args.resolution} pixels, batches of {args.batch_size}, {args.num_workers} workers")
    print(f"building the cache   {2 * args.images / build:10.1f} encodings per second")
    print(f"without the cache    {plain:10.1f} images per second")
    print(f"with the cache       {cached:10.1f} images per second, {cached / plain:.0f} times as many")


def stable_diffusion_autoencoder() -> AutoencoderKL:
    """The architecture of sd-vae-ft-ema, 83.7M parameters, random."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
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


@torch.no_grad()
def images_per_second(dataset, vae, accelerator: Accelerator, args: argparse.Namespace) -> float:
    """Batches as training takes them, up to the latents on the device."""
    sampler = TrainingBatchSampler(len(dataset), args.batch_size, args.batches + 1, seed=0)
    for number, batch in enumerate(training_loader(dataset, sampler, args.num_workers)):
        if number == 1:
            started = time.perf_counter()
        if "image" in batch:
            mean, _ = posterior(vae, batch["image"])
        else:
            mean, _ = batch["mean"].to(accelerator.device), batch["std"].to(accelerator.device)
        if mean.device.type == "cuda":
            torch.cuda.synchronize()
    return args.batches * args.batch_size / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
