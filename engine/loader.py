"""Which images make which batch, and reading them in worker processes.

A batch is planned before anything is read: a list of draws (image, seed). The plan depends on the
seed and the data alone, neither on workers nor on processes, so a run resumes to the sample and N
processes see the images of one.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from engine.errors import SkippedSampleError, UserError
from engine.readers import read_ahead
from engine.schema import LoaderConfig
from engine.task import Batch, DataSet

_MAX_SUBSTITUTES = 20  # bad images in a row after which training with `skip` gives up


@dataclass(frozen=True)
class Draw:
    """Image `index` of a data set, and the seed of what its batch's `frame` leaves to chance."""

    index: int
    seed: int


@dataclass(frozen=True)
class Part:
    """One process's part of a batch, and what all its parts agree on (see `DataSet.frame`)."""

    draws: list[Draw]
    frame: Any = None


@dataclass(frozen=True)
class Delivery:
    """What a worker hands over: a batch (None: all skipped), and why images were skipped."""

    batch: Batch | None
    skipped: tuple[str, ...] = ()


def training_batches(
    groups: np.ndarray, *, batch_size: int, seed: int, repeats: int = 1, start: int = 0
) -> Iterator[list[Draw]]:
    """Plan global training batches without end, from batch `start` on.

    Every pass over the data is one permutation, so each image is drawn once a pass, or `repeats`
    times in a row with different seeds. Images wait until `batch_size` of their group are there;
    those left waiting at the end of a pass come first in the next, so no batch is short.

    Args:
        groups: (N,) group of each image; a batch holds one group.
        batch_size: images in a batch, over all processes.
        seed: the run's seed.
        repeats: draws of each image in a pass.
        start: batches to leave out, for resuming.
    """
    if len(groups) == 0:
        raise UserError("training data: expected at least one image, got none")
    waiting: dict[int, list[Draw]] = {int(group): [] for group in np.unique(groups)}
    planned = 0
    for epoch in itertools.count():
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(len(groups))
        seeds = rng.integers(2**62, size=len(groups) * repeats)
        drawn = order.repeat(repeats)
        for index, draw_seed in zip(drawn.tolist(), seeds.tolist(), strict=True):
            queue = waiting[int(groups[index])]
            queue.append(Draw(index, draw_seed))
            if len(queue) == batch_size:
                if planned >= start:
                    yield queue.copy()
                planned += 1
                queue.clear()


def split_batches(
    data: DataSet,
    batches: Iterable[list[Draw]],
    *,
    rank: int,
    world_size: int,
    accumulate: int,
) -> Iterator[Part]:
    """Give process `rank` its share of each global batch, in `accumulate` successive parts."""
    for batch in batches:
        frame = data.frame([(draw.index, draw.seed) for draw in batch])
        share = batch[rank::world_size]
        for number in range(accumulate):
            yield Part(share[number::accumulate], frame)


def evaluation_batches(groups: np.ndarray, *, batch_size: int) -> list[Part]:
    """Plan batches that hold every image once, each of one group (one padded shape).

    The plan is made before it is shared out among processes: a batch is the same whoever computes
    it.
    """
    batches = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group).tolist()
        batches += [
            Part([Draw(index, index) for index in members[first : first + batch_size]])
            for first in range(0, len(members), batch_size)
        ]
    return batches


class _Reader:
    """Reads one part of a batch."""

    def __init__(self, data: DataSet, *, substitute: bool) -> None:
        self.data = data
        self.substitute = substitute

    def __call__(self, part: Part) -> Delivery:
        skipped: list[str] = []
        samples = [
            sample for draw in part.draws for sample in self._read(draw, part.frame, skipped)
        ]
        batch = self.data.collate(samples, part.frame) if samples else None
        return Delivery(batch, tuple(skipped))

    def _read(self, draw: Draw, frame: Any, skipped: list[str]) -> list[Any]:
        """Return the sample; in training the next readable one, so that batches keep their size."""
        tries = _MAX_SUBSTITUTES if self.substitute else 1
        for offset in range(tries):
            try:
                index = (draw.index + offset) % len(self.data)
                return [self.data.load(index, draw.seed, frame)]
            except SkippedSampleError as reason:
                skipped.append(str(reason))
        if self.substitute:
            raise UserError(f"{tries} bad images in a row, the last: {skipped[-1]}")
        return []


def read_batches(
    data: DataSet,
    plan: Iterable[Part],
    *,
    config: LoaderConfig,
    device: torch.device,
    substitute: bool,
) -> Iterator[Delivery]:
    """Read planned batches ahead in worker processes, in order, and move them to the device.

    Args:
        data: images.
        plan: batches to read.
        config: workers, how far they read ahead, and how long to wait for them.
        device: where batches go; copies do not wait for it.
        substitute: whether a skipped image is replaced by the next one (training) or left out
        (evaluation).

    Raises:
        UserError: an image is bad and the policy is to stop.
        ReadingError: the machine refused something, or a worker was killed or does not answer.
    """
    reader = _Reader(data, substitute=substitute)
    for delivery in read_ahead(reader, plan, config):
        batch = delivery.batch
        if batch is not None:
            if device.type == "cuda":
                batch = batch.pin_memory()
            batch = batch.to(device, non_blocking=True)
        yield Delivery(batch, delivery.skipped)
