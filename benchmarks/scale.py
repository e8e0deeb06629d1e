"""How opening, hashing, shuffling and sharing a folder of images scale with their number; reading latents and images.

    python -m benchmarks.scale --images 10000,100000
    python -m benchmarks.scale --images 1280000 --folder /data/scale      # 5 GB of disk, kept for another run
    python -m benchmarks.scale --images 100000 --tars                     # in tar files of 10,000

Each size is a folder of JPEG files of 3 kB in up to 1,000 class folders, measured in a separate process. "s", "CPU s":
wall and CPU seconds; "kept", "peak": bytes per image that a phase adds to the process permanently, and at its peak.
"a worker copies": bytes per image of the index that a forked data worker copies while reading every entry, as Python
writes reference counts into objects. Files are in the page cache: otherwise, hashing waits for the disk. Linux only.
"""

import argparse
import gc
import io
import itertools
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from onelora_vision.storage.files import write_json

FILE_BYTES, CLASSES, TAR_IMAGES, BATCH = 3000, 1000, 10_000, 256
COLUMNS = ("s", "cpu", "kept", "peak")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="10000,100000", help="comma-separated numbers of images")
    parser.add_argument("--tars", action="store_true", help="store the images in tar files (webdataset)")
    parser.add_argument(
        "--folder", help="folder to write the images to and keep them in (default: a temporary folder)"
    )
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # in the process of one size
    parser.add_argument("--latents", type=int, default=20480, help="latents to read back; 0: none")
    parser.add_argument("--pictures", type=int, default=512, help="images to decode and to keep decoded; 0: none")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of reading them in each way, alternately")
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--quick", action="store_true", help="few images, to test the script")
    args = parser.parse_args(argv)
    if args.quick:
        args.images, args.latents, args.pictures, args.rounds = "200", 512, 32, 1
    return args


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    if args.measure:
        return {"rows": measure(Path(args.folder), args.tars)}
    results = {"device": platform.processor() or platform.machine(), "images": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for count in map(int, filter(None, args.images.split(","))):
            folder = Path(args.folder or temporary) / f"{count}{'-tars' * args.tars}"
            (write_tars if args.tars else write_folder)(folder, count)
            results["images"][count] = measured_apart(folder, Path(temporary) / "cache", args.tars)
            show(count, results["images"][count])
    if args.latents:
        results["latents"] = latent_rates(args.latents, args.rounds)
        print(f"\n{args.latents:,} latents of 4 x 32 x 32, batches of {BATCH}: read per second")
        print("\n".join(f"{name}: {rate:,.0f}" for name, rate in results["latents"].items()))
    if args.pictures:
        results["pictures"] = picture_rates(args.pictures, args.rounds)
        print(
            f"\n{args.pictures:,} JPEG files of 500 x 375, items per CPU second: read each time, --cache_images uint8"
        )
        print("\n".join(f"{name}: {a:,.0f}, {b:,.0f}" for name, (a, b) in results["pictures"].items()))
    if args.output:
        write_json(args.output, results)
    return results


def write_folder(folder: Path, count: int) -> None:
    """Write ``count`` different files in class folders in ``folder/train``, unless they exist."""
    picture, classes = _picture(), _classes(count)
    for label in range(classes):
        place = folder / "train" / f"n{label:08d}"
        place.mkdir(parents=True, exist_ok=True)
        numbers = range(label, count, classes)
        if len(os.listdir(place)) == len(numbers):
            continue
        for number in numbers:
            with open(place / f"n{label:08d}_{number}.JPEG", "wb") as image:
                image.write(picture + number.to_bytes(8))


def write_tars(folder: Path, count: int) -> None:
    """The same in tar files in ``folder``, with 10,000 images each, unless they exist."""
    picture, classes = _picture(), _classes(count)
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, TAR_IMAGES):
        path = folder / f"train-{first // TAR_IMAGES:04d}.tar"
        if path.exists():
            continue
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
            for number in range(first, min(first + TAR_IMAGES, count)):
                label = str(number % classes).encode()
                for kind, data in (("jpg", picture + number.to_bytes(8)), ("cls", label)):
                    entry = tarfile.TarInfo(f"{number:08d}.{kind}")
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))


def _picture() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), "gray").save(file, "jpeg")
    return file.getvalue().ljust(FILE_BYTES - 8, b"\0")


def _classes(count: int) -> int:
    return min(CLASSES, max(count // 10, 1))


def measured_apart(folder: Path, cache: Path, tars: bool) -> dict:
    command = [sys.executable, "-m", "benchmarks.scale", "--measure", "--folder", str(folder), *["--tars"] * tars]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "TQDM_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, tars: bool) -> dict:
    """The phases of a start, in order: seconds and bytes per image of each."""
    from onelora_vision.data.classes.formats import open_class_images
    from onelora_vision.data.content import content_hashes
    from onelora_vision.data.latents import LatentStore
    from onelora_vision.data.stream import TrainingBatchSampler

    content_hashes(open_class_images("embedded").subset([0]))  # imports
    rows, images = {}, None

    def phase(name: str, work: Callable):
        rows[name], result = _measured(work, len(images) if images else 0)
        return result

    kind = "webdataset" if tars else "imagefolder"
    images = phase("open", lambda: open_class_images(kind, folder))
    for part in ("kept", "peak"):
        rows["open"][part] /= len(images)
    if tars:
        phase("open, second start", lambda: open_class_images(kind, folder))
    hashes = [phase(f"hash, {start} start", lambda: content_hashes(images)) for start in ("first", "second")]
    assert list(hashes[0]) == list(hashes[1])
    with tempfile.TemporaryDirectory() as place:
        _write_store(place, hashes[0].digests)
        phase("find their latents", lambda: LatentStore(place).find(hashes[0].digests))
    phase("identity", images.identity)
    sampler = TrainingBatchSampler(len(images), BATCH, 10**9, seed=0)
    phase("order of an epoch", lambda: sampler.batch(0))
    middle = 7 * len(images) // (2 * BATCH)
    phase("resume in the middle", lambda: TrainingBatchSampler(len(images), BATCH, 10**9, 0).batch(middle))
    early, late = (_seconds_per_batch(sampler, images, first) for first in (1, len(images) // BATCH * 9 // 10))
    rows[f"references and paths of {BATCH} images, early in an epoch"] = {"s": early}
    rows["the same, late"] = {"s": late}
    rows["a worker copies"] = {"kept": _copied_by_a_worker(images) / len(images)}
    print(json.dumps(rows))
    return rows


def _write_store(place: str, digests: np.ndarray) -> None:
    """Shards with as many entries as for fp16 latents, but one value each: only the index matters here."""
    import torch

    from onelora_vision.data.latents import LatentStore

    for first in range(0, len(digests), 8192):
        part = digests[first : first + 8192]
        value = torch.zeros(len(part), 2, 1, 1, 1, dtype=torch.float16)
        LatentStore(place).write(part, value, value.clone())


def latent_rates(count: int, rounds: int) -> dict[str, float]:
    """Latents of 4 x 32 x 32 per second from a loader in batches, in random order, from the page cache; medians."""
    import torch

    from onelora_vision.data.classes.dataset import ClassImageDataset
    from onelora_vision.data.classes.images import ClassImages
    from onelora_vision.data.generation import SquareCrop
    from onelora_vision.data.latents import DTYPES, LatentDataset, LatentStore
    from onelora_vision.data.stream import TrainingBatchSampler, training_loader

    digests = np.random.default_rng(0).integers(0, 256, (count, 32), dtype=np.uint8)
    source = ClassImages([f"{number}.png" for number in range(count)], [0] * count, ["one"], "benchmark", "train")
    images, rates = ClassImageDataset(source, SquareCrop(256, random_flip=True)), {}
    with tempfile.TemporaryDirectory() as folder:
        sets = {}
        for name in ("fp32", "fp16"):
            place = Path(folder, name)
            for first in range(0, count, 2048):
                mean = torch.randn(min(2048, count - first), 2, 4, 32, 32).to(DTYPES[name])
                LatentStore(place).write(digests[first : first + 2048], mean, mean.clone())
            sets[name] = LatentDataset(images, digests, LatentStore(place))
        for number in range(rounds):
            for name, workers in itertools.product(sets, (0, 2)):
                sampler = TrainingBatchSampler(count, BATCH, max(count // BATCH, 2), seed=number)
                batches = iter(training_loader(sets[name], sampler, workers))
                next(batches)
                started = time.perf_counter()
                read = BATCH * sum(1 for _ in batches)
                rates.setdefault((name, workers), []).append(read / (time.perf_counter() - started))
    return {f"{name}, {workers} workers": sorted(found)[len(found) // 2] for (name, workers), found in rates.items()}


def picture_rates(count: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Items per CPU second of an epoch that reads the files, and of one with decoded images; medians over rounds.

    The images have details like photographs: slowly varying colours, with noise.
    """
    from PIL import Image
    from timm.data import create_transform

    from onelora_vision.data.classes.dataset import ClassImageDataset
    from onelora_vision.data.classes.images import ClassImages
    from onelora_vision.data.depth.caps import Caps
    from onelora_vision.data.depth.dataset import DepthDataset, InputSize
    from onelora_vision.data.depth.frames import FilePair, FrameFiles
    from onelora_vision.data.generation import SquareCrop

    draw, rates = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = [FilePair(Path(folder, f"{number}.jpg"), Path(folder, f"{number}.png")) for number in range(count)]
        for image, depth, *_ in pairs:
            small = Image.fromarray(draw.integers(0, 255, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(small.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
            noisy = (smooth + draw.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(image, quality=90)
            Image.fromarray((smooth[..., 0] * 40 + 1000).astype(np.uint16)).save(depth)
        source = ClassImages([str(pair.image) for pair in pairs], [0] * count, ["one"], "benchmark", "train")
        crop = create_transform(224, is_training=True, scale=(0.7, 1), color_jitter=None, normalize=False)
        makers = {
            "classification, a random crop to 224": lambda: ClassImageDataset(source, crop),
            "DiT, a random square of 256": lambda: ClassImageDataset(source, SquareCrop(256, center_crop=False)),
            "depth, a random square of 364": lambda: DepthDataset(
                FrameFiles(pairs), Caps(0.1, 80), InputSize(364, None, 14), train=True
            ),
        }
        for name, make in makers.items():
            sets = make(), make()
            sets[1].keep_decoded(hidden=True)
            found = [[_items_per_second(dataset) for dataset in sets] for _ in range(rounds)]
            rates[name] = tuple(float(rate) for rate in np.median(found, 0))
    return rates


def _items_per_second(dataset) -> float:
    started = time.process_time()
    for first in range(0, len(dataset), 32):
        dataset.__getitems__(range(first, min(first + 32, len(dataset))))
    return len(dataset) / (time.process_time() - started)


def _measured(work: Callable, count: int) -> tuple[dict, object]:
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the highest resident set
    before, started, busy = _status("VmRSS"), time.perf_counter(), time.process_time()
    result = work()
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    highest = _status("VmHWM")
    gc.collect()
    row = {"s": seconds, "cpu": busy, "kept": _status("VmRSS") - before, "peak": highest - before}
    return {**row, "kept": row["kept"] / max(count, 1), "peak": row["peak"] / max(count, 1)}, result


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def _seconds_per_batch(sampler, images, first: int, batches: int = 5) -> float:
    sampler.batch(first)  # creates the epoch's order
    started = time.perf_counter()
    for number in range(first, first + batches):
        for ref in sampler.batch(number):
            images.path(ref.index), int(images.labels[ref.index])
    return (time.perf_counter() - started) / batches


def _copied_by_a_worker(images) -> int:
    """Bytes that a forked process has written to while reading the index."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def read_all() -> None:
        order = np.random.default_rng(0).permutation(len(images))
        before = _private_bytes()
        for index in order:
            images.path(index), int(images.labels[index])
        sender.send(_private_bytes() - before)

    worker = context.Process(target=read_all)
    worker.start()
    copied = receiver.recv()
    worker.join()
    return copied


def _private_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) * 1024


def show(count: int, rows: dict) -> None:
    print(f"\n{count:,} images\n| | s | CPU s | bytes per image, kept | peak |\n|---|---|---|---|---|")
    for name, row in rows.items():
        cells = (f"{row[key]:.4g}" if key in row else "" for key in COLUMNS)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
