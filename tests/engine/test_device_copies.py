"""Items computed ahead in a thread; batches copied ahead to a GPU."""

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from engine.device_copies import ahead
from engine.errors import ReadingError, UserError
from engine.loader import BatchPart, SampleKey, read_batches
from engine.schema import LoaderConfig
from engine.structures import Movable, tensors_of
from engine.workers import read_ahead


class Source:
    """Counts from 0; notes what was taken, in which thread, and whether it was closed."""

    def __init__(self, count: int | None = None, error: BaseException | None = None) -> None:
        self.count, self.error = count, error
        self.taken = 0
        self.closed = False
        self.threads: set[threading.Thread] = set()

    def items(self) -> Iterator[int]:
        try:
            for number in itertools.count():
                self.threads.add(threading.current_thread())
                if number == self.count:
                    if self.error is not None:
                        raise self.error
                    return
                self.taken += 1
                yield number
        finally:
            self.closed = True


def double(number: int) -> int:
    return 2 * number


def no_thread_is_left() -> bool:
    return not [each for each in threading.enumerate() if each.name.startswith("ahead")]


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_results_come_in_order(count: int, depth: int) -> None:
    source = Source(count)
    assert list(ahead(source.items(), double, depth=depth)) == [2 * n for n in range(count)]
    assert source.closed
    assert no_thread_is_left()


def test_items_may_come_from_a_plain_iterator() -> None:
    assert list(ahead(iter([1, 2, 3]), double, depth=1)) == [2, 4, 6]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_at_most_depth_items_are_ahead(depth: int) -> None:
    source = Source()
    results = ahead(source.items(), double, depth=depth)
    assert source.taken == 0
    for asked_for in range(1, 6):
        next(results)
        assert source.taken == asked_for + depth
    results.close()


def test_fewer_items_are_ahead_after_results_that_ask_for_fewer() -> None:
    source = Source()
    results = ahead(source.items(), double, depth=4, depth_after=lambda doubled: 10 - doubled)
    ahead_of = []
    for asked_for in range(1, 8):
        next(results)
        ahead_of.append(source.taken - asked_for)
    # nothing before the first result; then as many as the one before allows, and at least one
    assert ahead_of == [0, 4, 4, 4, 4, 3, 2]
    results.close()


def test_source_is_read_in_this_thread_and_items_are_transformed_in_one_other() -> None:
    source, threads = Source(5), set()

    def note_thread(number: int) -> int:
        threads.add(threading.current_thread())
        return number

    list(ahead(source.items(), note_thread, depth=2))
    assert source.threads == {threading.current_thread()}
    assert len(threads) == 1
    assert threads != source.threads


def test_the_next_item_is_transformed_while_the_caller_works() -> None:
    second_is_done = threading.Event()

    def transform(number: int) -> int:
        if number == 1:
            second_is_done.set()
        return number

    results = ahead(Source().items(), transform, depth=1)
    next(results)
    assert second_is_done.wait(timeout=10)
    results.close()


@pytest.mark.parametrize("error", [UserError("a.jpg: bad"), ReadingError("no memory"), KeyError(1)])
def test_error_of_the_source_comes_at_its_place(error: Exception) -> None:
    results = ahead(Source(3, error).items(), double, depth=2)
    assert [next(results) for _ in range(3)] == [0, 2, 4]
    with pytest.raises(type(error)) as caught:
        next(results)
    assert caught.value is error
    assert next(results, None) is None
    assert no_thread_is_left()


def test_error_of_the_transform_comes_at_its_place_and_closes_the_source() -> None:
    def fail_at_two(number: int) -> int:
        if number == 2:
            raise RuntimeError("out of memory")
        return number

    source = Source()
    results = ahead(source.items(), fail_at_two, depth=1)
    assert [next(results) for _ in range(2)] == [0, 1]
    with pytest.raises(RuntimeError, match="out of memory"):
        next(results)
    assert source.closed
    assert no_thread_is_left()


def test_interrupt_while_the_source_is_read_is_raised_at_once() -> None:
    source = Source(1, KeyboardInterrupt())
    results = ahead(source.items(), double, depth=1)
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert source.closed
    assert no_thread_is_left()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt; a shell's background processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_while_the_thread_works_is_raised_when_it_is_done() -> None:
    def interrupt_at_one(number: int) -> int:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
        return number

    source = Source()
    results = ahead(source.items(), interrupt_at_one, depth=0)
    assert next(results) == 0
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert source.closed
    assert no_thread_is_left()


def drop(results: list[Iterator[int]]) -> None:
    results.clear()


def close(results: list[Iterator[int]]) -> None:
    results[0].close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", [close, drop])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_early_close_stops_the_thread_and_closes_the_source(
    taken: int, end: Callable[[list[Iterator[int]]], None]
) -> None:
    source = Source()
    results: list[Iterator[int]] = [ahead(source.items(), double, depth=2)]
    for _ in range(taken):
        next(results[0])
    end(results)
    assert source.closed == (taken > 0)  # what never started has nothing to close
    assert no_thread_is_left()


def row(number: int) -> Tensor:
    return torch.full((3,), number)


def rows_ahead() -> Iterator[Tensor]:
    """Return rows read in workers; each is copied, as pinning does, which frees shared memory."""
    config = LoaderConfig(workers=2)
    return ahead(read_ahead(row, itertools.count(), config), torch.clone, depth=1)


@pytest.mark.extended
def test_rows_read_in_workers_while_another_loader_runs() -> None:
    # as in training: the workers of an evaluation are forked while the thread of training waits
    training = rows_ahead()
    assert [int(next(training)[0]) for _ in range(3)] == [0, 1, 2]
    for _ in range(2):
        evaluation = rows_ahead()
        assert [int(next(evaluation)[0]) for _ in range(10)] == list(range(10))
        evaluation.close()  # type: ignore[attr-defined]
        assert len(multiprocessing.active_children()) == 2
    assert [int(next(training)[0]) for _ in range(3)] == [3, 4, 5]
    training.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    assert no_thread_is_left()


@pytest.mark.extended
def test_killed_worker_is_one_line() -> None:
    rows = rows_ahead()
    next(rows)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    with pytest.raises(ReadingError, match=r"worker process \d+ was killed by SIGKILL"):
        list(itertools.islice(rows, 20))
    assert not multiprocessing.active_children()
    assert no_thread_is_left()


@dataclass(frozen=True)
class Part(Movable):
    """Values with an optional tensor and a plain value."""

    values: Tensor
    extra: Tensor | None = None
    name: str = "part"


@dataclass(frozen=True)
class Whole(Movable):
    """A part, and a tensor of its own."""

    part: Part
    image_ids: Tensor

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)


def test_every_tensor_of_nested_dataclasses_is_found() -> None:
    values, extra, image_ids = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    whole = Whole(Part(values, extra), image_ids)
    found = list(tensors_of(whole))
    assert all(one is other for one, other in zip(found, (values, extra, image_ids), strict=True))
    assert len(list(tensors_of(Whole(Part(values), image_ids)))) == 2
    assert list(tensors_of(None)) == []


class LargeRows:
    """Batches of 4 MB of one value, so that memory which is reused too early would be seen."""

    groups = torch.zeros(64, dtype=torch.int64).numpy()

    def __len__(self) -> int:
        return len(self.groups)

    def load(self, index: int, seed: int, batch_shape: None = None) -> Tensor:
        return torch.full((1_000_000,), float(seed))

    def batch_shape(self, sample_keys: object) -> None:
        return None

    def collate(self, samples: list[Tensor], batch_shape: None = None) -> Whole:
        values = torch.stack(samples)
        return Whole(Part(values, values.sum(1)), values[:, 0].long())


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_have_their_values_until_the_last_use(workers: int) -> None:
    device = torch.device("cuda")
    plan = [BatchPart([SampleKey(0, number)]) for number in range(64)]
    batches = read_batches(
        LargeRows(),  # type: ignore[arg-type]
        plan,
        config=LoaderConfig(workers=workers),
        device=device,
        substitute=False,
    )
    sums = []
    for loaded in batches:
        batch = loaded.batch
        assert isinstance(batch, Whole)
        assert all(tensor.is_cuda for tensor in tensors_of(batch))
        torch.cuda._sleep(2_000_000)  # a millisecond: the host and the copies run ahead
        sums.append(torch.stack([batch.part.values.mean(), batch.image_ids.sum().float()]))
        del loaded, batch
    expected = torch.arange(64.0)[:, None].expand(64, 2)
    torch.testing.assert_close(torch.stack(sums).cpu(), expected)
    assert no_thread_is_left()
