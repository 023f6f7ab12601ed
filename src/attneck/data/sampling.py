"""Stateless order and augmentation: every random draw is a function of what it is for.

No random state is kept, so none has to be saved. The order of an epoch is a function of (seed, epoch), the
augmentation of an image of (seed, epoch, index), the side of a step's images of (seed, step), and the
randomness inside a step (dropout, drop path, mixup) of (seed, step, rank). Training that resumes at any step,
with any number of workers, sees the same bits.

The generator counts instead of iterating: the counter's words are folded, one by one, through SplitMix64's
finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) in
vectorised 64-bit integer arithmetic, so a batch's draws come from one call and are the same on every machine.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Sampler

from attneck.checks import divides

Key = tuple[int, int]
"""What a data set is indexed with: (epoch, index)."""
SizedKey = tuple[int, int, int]
"""The same with the side that the image is to have, in pixels."""


def key_of(index: Key | SizedKey | int, augment: str) -> Key:
    """The key without its side; that of a plain index, as a DataLoader without our batches gives it.

    Raises ValueError for one into a set with an augmentation: its draws are a function of the epoch too, and
    each epoch would have the same.
    """
    if isinstance(index, tuple):
        return index[:2]
    if augment != "none":
        raise ValueError(
            f"index {index} has no epoch, and augment {augment} draws by it: index with (epoch, {index}), "
            "give the DataLoader batch_sampler=attneck.data.TrainBatches(…), or open with augment none"
        )
    return 0, int(index)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1

# One number for each use, so that no two uses share a draw.
_ORDER, _UNIFORMS, _ITEM, _STEP, _SIDE = 1, 2, 3, 4, 5


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _FACTORS[0]
    z = (z ^ (z >> np.uint64(27))) * _FACTORS[1]
    return z ^ (z >> np.uint64(31))


def _word(value: ArrayLike) -> NDArray[np.uint64]:
    if isinstance(value, int):
        return np.array([value & _MASK], dtype=np.uint64)
    return np.atleast_1d(np.asarray(value)).astype(np.uint64)


def hash64(*words: ArrayLike) -> NDArray[np.uint64]:
    """64 well-mixed bits for every counter.

    `words` are integers or integer arrays that broadcast together; the result has their common shape, [1] at
    least. For a fixed prefix of words, different last words never collide.
    """
    z = np.zeros(1, dtype=np.uint64)
    for word in words:
        # An array of at least one dimension wraps around silently, which is what is wanted here.
        z = _mix(z + (_word(word) + np.uint64(1)) * _GOLDEN)
    return z


def order(seed: int, epoch: int, length: int) -> Tensor:
    """The order in which an epoch visits a data set: a permutation of 0 … length-1, int64 [length].

    It is numpy's stable argsort of hashes, hence the same for every torch version, device and machine.
    """
    hashes = hash64(_ORDER, seed, epoch, np.arange(length))
    return torch.from_numpy(np.argsort(hashes, kind="stable").astype(np.int64))


def spread(count: int, size: int, name: str) -> NDArray[np.int64]:
    """`size` indices evenly spread over 0 … count-1, int64; ValueError when size is over count."""
    if size > count:
        raise ValueError(f"{name}: size is {size} of {count} images: choose {count} or fewer")
    return np.arange(size) * count // size


def uniforms(
    seed: int, epoch: int | NDArray[np.int64], indices: ArrayLike, count: int
) -> NDArray[np.float64]:
    """`count` independent draws from [0, 1) for each index, float64 [len(indices), count].

    Row i depends on (seed, epoch, indices[i]) alone, and draw j does not depend on `count`. `epoch` may be
    one number, or an array [len(indices)].
    """
    epochs = epoch if isinstance(epoch, int) else np.asarray(epoch)[:, None]
    bits = hash64(_UNIFORMS, seed, epochs, np.asarray(indices)[:, None], np.arange(count))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def item_seeds(seed: int, epochs: ArrayLike, indices: ArrayLike) -> list[int]:
    """The seeds of everything random about each item in its epoch, in [0, 2^63)."""
    seeds: list[int] = (hash64(_ITEM, seed, epochs, indices) >> np.uint64(1)).tolist()
    return seeds


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of everything random inside one optimiser step on one rank, in [0, 2^63)."""
    return int(hash64(_STEP, seed, step, rank)[0] >> np.uint64(1))


def side_of(sides: Sequence[int], seed: int, step: int) -> int:
    """The side, of these, that the images of a step have."""
    return sides[int(hash64(_SIDE, seed, step)[0]) % len(sides)]


@contextmanager
def generators(*, torch_alone: bool = False) -> Iterator[Callable[[int], None]]:
    """Lends the global generators that torchvision (torch's) and timm (Python's, numpy's) draw from.

    It gives what seeds them, an image at a time; in the end they are what they were. Keeping their states
    takes far longer than seeding them, so it is done once for a batch.

    torch_alone: leave the other two as they are.
    """

    def seed_torch(seed: int) -> None:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA's too

    def seed_all(seed: int) -> None:
        seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)

    with torch.random.fork_rng(devices=[]):
        if torch_alone:
            yield seed_torch
            return
        python, array = random.getstate(), np.random.get_state()
        try:
            yield seed_all
        finally:
            random.setstate(python)
            np.random.set_state(array)


class TrainBatches(Sampler[list[Key] | list[SizedKey]]):
    """The micro-batches of one rank, as lists of (epoch, index) keys, from optimiser step `start` to `steps`.

    `batch` is the global batch: what one optimiser step sees over all `world` ranks and `accumulate`
    micro-batches. The union over these is, for step k of an epoch, exactly
    `order(seed, epoch, length)[k * batch : (k + 1) * batch]`, whatever the ranks, the accumulation and the
    step that training resumed at. Each optimiser step yields `accumulate` lists of batch / (world ·
    accumulate) keys. The last, incomplete batch of an epoch is dropped.

    sides: in pixels; all images of a step have one of them, each as likely, and the keys say which: (epoch,
        index, side).

    Raises ValueError when `batch` is larger than the data set or not divisible by world · accumulate.
    """

    def __init__(
        self,
        length: int,
        batch: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        start: int = 0,
        steps: int,
        sides: Sequence[int] = (),
    ) -> None:
        _check_rank(rank, world)
        if batch < 1 or accumulate < 1:
            raise ValueError(f"batch is {batch} and accumulate {accumulate}: both must be 1 or more")
        if batch > length:
            raise ValueError(
                f"a batch of {batch} is larger than the data set of {length} images: "
                f"choose a batch of {length} or fewer"
            )
        divides(batch, world, accumulate)
        if not 0 <= start <= steps:
            raise ValueError(f"start is {start} of {steps} steps: it must lie in 0 ... {steps}")
        self.length, self.batch, self.seed = length, batch, seed
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.start, self.steps, self.sides = start, steps, sides

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return self.length // self.batch

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[Key] | list[SizedKey]]:
        micro = self.batch // (self.world * self.accumulate)
        current, indices = -1, torch.empty(0, dtype=torch.int64)
        for step in range(self.start, self.steps):
            epoch, k = divmod(step, self.steps_per_epoch)
            if epoch != current:
                current, indices = epoch, order(self.seed, epoch, self.length)
            for part in range(self.accumulate):
                first = k * self.batch + (part * self.world + self.rank) * micro
                part_of_epoch = indices[first : first + micro].tolist()
                if self.sides:
                    side = side_of(self.sides, self.seed, step)
                    yield [(epoch, index, side) for index in part_of_epoch]
                else:
                    yield [(epoch, index) for index in part_of_epoch]


class EvalBatches(Sampler[list[Key]]):
    """Every index exactly once over all ranks, as lists of at most `batch` (0, index) keys.

    Rank r has the r-th run of consecutive indices, so the ranks' results put one after the other are in the
    data set's order. Nothing is padded: ranks may differ by one image, and so by one batch.
    """

    def __init__(self, length: int, batch: int, *, rank: int = 0, world: int = 1) -> None:
        _check_rank(rank, world)
        if batch < 1:
            raise ValueError(f"batch is {batch}: it must be 1 or more")
        self.batch = batch
        self.first, self.last = length * rank // world, length * (rank + 1) // world

    def __len__(self) -> int:
        return -(-(self.last - self.first) // self.batch)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(self.first, self.last, self.batch):
            yield [(0, index) for index in range(first, min(first + self.batch, self.last))]


def _check_rank(rank: int, world: int) -> None:
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank} of {world}: it must lie in 0 ... {world - 1}")


def split_keys(keys: Sequence[Key]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(epochs, indices), int64 [B] each, of B keys."""
    table = np.array(keys, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]
