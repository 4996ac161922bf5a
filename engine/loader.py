"""Data loader: plans the batches of a run and reads them in worker processes.

A batch is planned before any image is read: a list of samples (image indices and seeds). The plan
depends only on the run's seed and the data, not on the number of workers or processes. So a
resumed run continues with exactly the next sample, and N processes see the same images as one.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from engine.device_copies import copied_ahead
from engine.errors import SkippedSampleError, UserError
from engine.schema import LoaderConfig
from engine.task import Batch, DataSet, HasRepeatFactors
from engine.workers import read_ahead

_MAX_SUBSTITUTES = 20  # bad images in a row after which training fails even if it may skip


@dataclass(frozen=True)
class SampleKey:
    """One planned sample: the index of an image in the data set, and its augmentation seed."""

    index: int
    seed: int


@dataclass(frozen=True)
class BatchPart:
    """One process's part of a global batch.

    sample_keys: the samples of this part. batch_shape: the padded shape that all parts of the
    global batch share (see `DataSet.batch_shape`); None in evaluation.
    """

    sample_keys: list[SampleKey]
    batch_shape: Any = None


@dataclass(frozen=True)
class LoadedBatch:
    """A batch that was read (None if all images were skipped), and why images were skipped."""

    batch: Batch | None
    skipped: tuple[str, ...] = ()


def repeat_factors_of(data: DataSet) -> np.ndarray | None:
    """Return the data set's repeat factors; None if it has none and each image occurs once."""
    return data.repeat_factors if isinstance(data, HasRepeatFactors) else None


def training_batches(
    groups: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    repeats: int = 1,
    factors: np.ndarray | None = None,
    start: int = 0,
) -> Iterator[list[SampleKey]]:
    """Plan global training batches endlessly, starting with batch `start`.

    Each epoch is one permutation of the data: each image is used once per epoch, or `repeats`
    times in a row with different seeds. With `factors`, the permutation contains an image several
    times, with different seeds, too. Images are queued until `batch_size` of their group are
    available. Images left in a queue at the end of an epoch come first in the next one, so every
    batch is full.

    Args:
        groups: (N,) group of each image; a batch holds images of one group.
        batch_size: images in a batch, over all processes.
        seed: the run's seed.
        repeats: number of times in a row that each image is used.
        factors: (N,) mean number of places of each image in an epoch, see `HasRepeatFactors`;
            None: one place. If all are 1 the plan is the same as with None.
        start: number of batches to skip, for resuming.

    Raises:
        UserError: there are no images.
    """
    if len(groups) == 0:
        raise UserError("training data: expected at least one image, got none")
    queues: dict[int, list[SampleKey]] = {int(group): [] for group in np.unique(groups)}
    first_epoch = planned = skipped = 0
    if len(queues) == 1 and factors is None:
        # Each epoch is as long, so begin with the first batch of the epoch in which `start` begins.
        length = len(groups) * repeats
        first_epoch = start * batch_size // length
        planned = -(-first_epoch * length // batch_size)
        skipped = planned * batch_size - first_epoch * length
    for epoch in itertools.count(first_epoch):
        # a generator per epoch: its order does not depend on the epochs before
        rng = np.random.default_rng((seed, epoch))
        places = np.arange(len(groups))
        if factors is not None:
            places = places.repeat(_sample_copies(factors, seed=seed, epoch=epoch))
        order = places[rng.permutation(len(places))]
        seeds = rng.integers(2**62, size=len(order) * repeats)
        indices = order.repeat(repeats)
        of_epoch = zip(indices.tolist(), seeds.tolist(), strict=True)
        for index, sample_seed in itertools.islice(of_epoch, skipped, None):
            queue = queues[int(groups[index])]
            queue.append(SampleKey(index, sample_seed))
            if len(queue) == batch_size:
                # batches before `start` are planned too: they determine what is left in the queues
                if planned >= start:
                    yield queue.copy()
                planned += 1
                queue.clear()
        skipped = 0


def _sample_copies(factors: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
    """Return (N,) int64: each factor rounded down, or up with the probability of its fraction."""
    # a generator of its own, so that factors of 1 leave the order and the seeds as they are
    rng = np.random.default_rng((seed, epoch, 1))
    whole = np.floor(factors)
    copies: np.ndarray = (whole + (rng.random(len(factors)) < factors - whole)).astype(np.int64)
    return copies


def split_batches(
    data: DataSet,
    batches: Iterable[list[SampleKey]],
    *,
    rank: int,
    world_size: int,
    accumulate: int,
) -> Iterator[BatchPart]:
    """Yield process `rank`'s share of each global batch, in `accumulate` successive parts.

    Args:
        data: computes the shape that the parts of a batch share.
        batches: global batches, each a multiple of `world_size * accumulate` samples.
        rank: this process, in 0..world_size-1.
        world_size: number of processes.
        accumulate: parts into which a process's share is split.
    """
    for batch in batches:
        # from the whole batch, before it is split: all processes pad to the same shape
        batch_shape = data.batch_shape([(key.index, key.seed) for key in batch])
        # strided slices: every share and part gets batch_size / (world_size * accumulate) samples
        share = batch[rank::world_size]
        for number in range(accumulate):
            yield BatchPart(share[number::accumulate], batch_shape)


def evaluation_batches(groups: np.ndarray, *, batch_size: int) -> list[BatchPart]:
    """Plan evaluation batches: every image once, each batch of one group (one padded shape).

    The plan is made before batches are distributed over processes, so a batch holds the same images
    no matter which process computes it.

    Args:
        groups: (N,) group of each image.
        batch_size: largest number of images in a batch; the last one of a group may be smaller.
    """
    batches = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group).tolist()
        batches += [
            BatchPart([SampleKey(index, index) for index in members[first : first + batch_size]])
            for first in range(0, len(members), batch_size)
        ]
    return batches


class _BatchLoader:
    """Reads and collates one part of a batch."""

    def __init__(self, data: DataSet, *, substitute: bool) -> None:
        self.data = data
        self.substitute = substitute

    def __call__(self, part: BatchPart) -> LoadedBatch:
        skipped: list[str] = []
        samples = [
            sample
            for key in part.sample_keys
            for sample in self._read(key, part.batch_shape, skipped)
        ]
        batch = self.data.collate(samples, part.batch_shape) if samples else None
        return LoadedBatch(batch, tuple(skipped))

    def _read(self, key: SampleKey, batch_shape: Any, skipped: list[str]) -> list[Any]:
        """Return the sample in a list, or [] if it was skipped in evaluation.

        In training the next readable image replaces a bad one, so that batches keep their size.
        """
        tries = _MAX_SUBSTITUTES if self.substitute else 1
        for offset in range(tries):
            try:
                index = (key.index + offset) % len(self.data)
                return [self.data.load(index, key.seed, batch_shape)]
            except SkippedSampleError as reason:
                skipped.append(str(reason))
        if self.substitute:
            raise UserError(f"{tries} bad images in a row, the last: {skipped[-1]}")
        return []


def read_batches(
    data: DataSet,
    plan: Iterable[BatchPart],
    *,
    config: LoaderConfig,
    device: torch.device,
    substitute: bool,
) -> Generator[LoadedBatch, None, None]:
    """Read planned batches in worker processes, in order, and move them to the device.

    Close it to stop the workers early.

    Args:
        data: the images.
        plan: batches to read.
        config: number of workers, prefetched batches per worker, and the timeout.
        device: where batches are moved. To a GPU they are copied, or decoded there, one batch ahead
            in a thread; the moved ones must be dataclasses of tensors, or of such dataclasses.
        substitute: True replaces a skipped image by the next one (training); False drops it
            (evaluation).

    Raises:
        UserError: an image is bad and the policy is to stop.
        ReadingError: out of memory or other resources, or a worker was killed or does not answer.
    """
    loaded_batches = read_ahead(_BatchLoader(data, substitute=substitute), plan, config)
    move = partial(_moved, device=device)
    if device.type == "cuda":
        yield from copied_ahead(loaded_batches, move, device=device)
    else:
        yield from map(move, loaded_batches)


def _moved(loaded: LoadedBatch, *, device: torch.device) -> LoadedBatch:
    """Return the batch on `device`; a copy to a GPU is asynchronous, on the current stream."""
    batch = loaded.batch
    if batch is not None:
        if device.type == "cuda":  # only copies from pinned memory are asynchronous
            batch = batch.pin_memory()
        batch = batch.to(device, non_blocking=True)
    return LoadedBatch(batch, loaded.skipped)
