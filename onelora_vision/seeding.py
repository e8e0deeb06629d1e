"""Randomness as a pure function of (seed, epoch, sample), independent of batch order, workers and processes.

Each training sample carries an integer seed. Augmentation, noise, timesteps and label dropout are drawn from it, so a
resumed run needs no generator states, and two processes draw the same as one.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

_MASK = (1 << 64) - 1


def mix(*values: int) -> int:
    """Hash integers to a 63-bit seed (SplitMix64 finaliser, Steele et al. 2014, applied value by value)."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state ^ (value & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def generators(seeds: Sequence[int] | torch.Tensor, stream: int = 0) -> list[torch.Generator]:
    """One CPU generator per sample. ``stream`` separates uses of the same seed (noise, timestep, dropout, …)."""
    return [torch.Generator().manual_seed(mix(int(seed), stream)) for seed in seeds]


def randn(seeds: Sequence[int] | torch.Tensor, shape: Sequence[int], stream: int = 0) -> torch.Tensor:
    """Standard normal noise (len(seeds), *shape), fp32 on CPU, each row drawn from its own sample's seed."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators(seeds, stream)])


def rand(seeds: Sequence[int] | torch.Tensor, stream: int = 0) -> torch.Tensor:
    """Uniform numbers in [0, 1), shape (len(seeds),), each drawn from its own sample's seed."""
    return torch.stack([torch.rand((), generator=g) for g in generators(seeds, stream)])


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices); called once per step with ``mix(seed, step, rank)``."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


@contextlib.contextmanager
def seedable() -> Iterator[Callable[[int], None]]:
    """Run a block with separate Python, NumPy and torch CPU generators; yields a function that seeds all three.

    Their previous states are restored afterwards. Saving states takes 25 times as long as seeding (mostly NumPy's), so
    use one block per batch.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield _seed_cpu
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """`seedable`, seeded once with ``seed``."""
    with seedable() as seed_generators:
        seed_generators(seed)
        yield


def _seed_cpu(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.random.default_generator.manual_seed(seed)
