"""Batch norm over valid rows, and synchronised over processes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.distributed import World
from engine.schema import LoopConfig
from engine.sync_norm import (
    MaskedBatchNorm2d,
    accumulated_norms_note,
    has_synchronised_norms,
    synchronise_norms,
)

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.extended
def test_two_processes_give_the_gradients_and_statistics_of_one(tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        output = tmp_path / f"{processes}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes)]
        command += [str(REPOSITORY / "tests/engine/norm_process.py"), str(output)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found.append(torch.load(output, weights_only=True))
    assert set(found[0]) >= {"0.weight", "1.running_mean", "4.running_var", "evaluated"}
    assert {"unequal conv1.weight", "none on one norm2.running_var"} < set(found[0])
    assert not found[0]["none norm1.running_mean"].any()
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def both(dtype: torch.dtype = torch.float64) -> tuple[MaskedBatchNorm2d, nn.BatchNorm2d]:
    """Return our norm and torch's with the same weights."""
    norms = MaskedBatchNorm2d(3).to(dtype), nn.BatchNorm2d(3).to(dtype)
    for tensor in (norms[0].weight, norms[0].bias, norms[0].running_mean, norms[0].running_var):
        assert tensor is not None
        nn.init.uniform_(tensor, 0.5, 2.0)
    norms[1].load_state_dict(norms[0].state_dict())
    return norms


def run(norm: nn.Module, x: Tensor, *args: Tensor) -> list[Tensor]:
    """Return outputs and gradients for the loss sum(output**3) over the rows `args` or all."""
    x = x.clone().requires_grad_()
    y = norm(x, *args)
    outputs = y[args[0]] if args else y
    return [outputs, *torch.autograd.grad(outputs.pow(3).sum(), [x, *norm.parameters()])]


VALID = {"some": [1, 0, 1, 1, 0], "one": [0, 0, 0, 1, 0], "all": [1, 1, 1, 1, 1]}


@pytest.mark.parametrize("valid", VALID.values(), ids=VALID)
def test_valid_rows_are_normalised_as_a_batch_of_their_own(valid: list[int]) -> None:
    ours, theirs = both()
    rows = torch.tensor(valid, dtype=torch.bool)
    x = torch.randn(5, 3, 2, 4, dtype=torch.float64) + 100  # far from 0: no cancellation
    found, expected = run(ours, x, rows), run(theirs, x[rows])
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1][rows], expected[1], rtol=1e-6, atol=1e-9)
    assert not found[1][~rows].any()
    torch.testing.assert_close(found[2:], expected[2:])
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()))
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
        torch.testing.assert_close(ours(x, rows), theirs(x))


def test_padding_changes_nothing() -> None:
    x, rows = torch.randn(4, 3, 5, 5), torch.tensor([True, False, True, False])
    results = []
    for padding in (0.0, 1e6):
        torch.manual_seed(2)
        norm, _ = both(torch.float32)
        padded = torch.where(rows[:, None, None, None], x, padding)
        results.append([*run(norm, padded, rows), *norm.buffers()])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("num_rows", [0, 2])
def test_no_valid_row_leaves_the_running_statistics(num_rows: int) -> None:
    norm, _ = both()
    before = {name: value.clone() for name, value in norm.named_buffers()}
    x = torch.randn(num_rows, 3, 2, 2, dtype=torch.float64)
    outputs, *gradients = run(norm, x, torch.zeros(num_rows, dtype=torch.bool))
    assert len(outputs) == 0
    assert not any(gradient.any() for gradient in gradients)
    assert norm(x, torch.zeros(num_rows, dtype=torch.bool)).isfinite().all()
    after = dict(norm.named_buffers())
    assert after.pop("num_batches_tracked") == 2
    torch.testing.assert_close(after, {name: before[name] for name in after}, rtol=0, atol=0)


def test_a_single_value_has_no_variance() -> None:
    norm, _ = both()
    assert norm.running_var is not None
    before = norm.running_var.clone()
    y = norm(torch.randn(2, 3, 1, 1, dtype=torch.float64), torch.tensor([True, False]))
    torch.testing.assert_close(y[0, :, 0, 0], norm.bias)
    torch.testing.assert_close(norm.running_var, 0.9 * before)


def test_the_dtype_stays_and_statistics_are_float32() -> None:
    ours, theirs = both(torch.float32)
    x = torch.randn(64, 3, 7, 7).to(torch.bfloat16)
    rows = torch.arange(64) < 50
    y = ours(x, rows)
    assert y.dtype == torch.bfloat16
    assert ours.running_mean is not None
    assert ours.running_mean.dtype == torch.float32
    torch.testing.assert_close(y[rows].float(), theirs(x[rows].float()), rtol=0.01, atol=0.01)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_batch_norms_are_synchronised_with_the_same_tensors(device: str) -> None:
    class OwnNorm(nn.BatchNorm2d):
        """Computes something else."""

    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3).eval()),
        MaskedBatchNorm2d(3),
        OwnNorm(3),
    )
    state = {name: tensor.data_ptr() for name, tensor in net.state_dict().items()}
    synchronise_norms(net, World(0, 1, torch.device(device)))
    assert not has_synchronised_norms(net)
    synchronise_norms(net, World(0, 2, torch.device(device)))
    assert has_synchronised_norms(net)
    plain, masked, own = (net.get_submodule(name) for name in ("0.1", "1", "2"))
    assert type(plain) is (nn.SyncBatchNorm if device == "cuda" else MaskedBatchNorm2d)
    assert type(masked) is MaskedBatchNorm2d
    assert masked.is_synchronised
    assert not plain.training
    assert type(own) is OwnNorm
    assert {name: tensor.data_ptr() for name, tensor in net.state_dict().items()} == state


@pytest.mark.parametrize(
    ("norm", "loop", "expected"),
    [
        (nn.BatchNorm2d(2), {"accumulate": 4}, "batch norm takes its statistics from 4 of 16"),
        (MaskedBatchNorm2d(2), {"accumulate": 2}, "loop.accumulate=2: batch norm takes"),
        (
            nn.BatchNorm2d(2),
            {"accumulate": 4, "sync_batch_norm": False},
            "from at most 4 of 16 images",
        ),
        (nn.BatchNorm2d(2), {}, None),
        (nn.GroupNorm(1, 2), {"accumulate": 4}, None),
    ],
    ids=["plain", "masked", "own", "not accumulated", "group"],
)
def test_a_note_says_that_parts_of_a_batch_are_normalised(
    norm: nn.Module, loop: dict[str, Any], expected: str | None
) -> None:
    note = accumulated_norms_note(nn.Sequential(norm), LoopConfig(batch_size=16, **loop))
    assert note is None if expected is None else expected in str(note)
