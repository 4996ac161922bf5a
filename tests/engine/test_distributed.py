"""Process group and collectives, on one process and on two under torchrun."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.distributed import (
    World,
    any_over_ranks,
    barrier,
    broadcast_object,
    gather_objects,
    mean_over_ranks,
    process_group,
    rank_and_size,
)
from engine.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]

COLLECTIVES = """
import torch
from engine.distributed import *

assert rank_and_size() == (0, 1)
with process_group("cpu", timeout_s=60) as world:
    rank = world.rank
    assert (rank, 2) == rank_and_size() and world.size == 2 and world.is_main == (rank == 0)
    value = torch.tensor([1.0, 3.0], requires_grad=True) * (rank + 1)
    mean = mean_over_ranks(value)
    assert mean.tolist() == [1.5, 4.5] and not mean.requires_grad
    assert value.tolist() == [1.0 * (rank + 1), 3.0 * (rank + 1)]
    flags = torch.tensor([False, True, rank == 1])
    assert any_over_ranks(flags).tolist() == [False, True, True]
    everything = [{"rank": 0}, {"rank": 1}]
    assert gather_objects({"rank": rank}) == (everything if rank == 0 else [])
    assert broadcast_object({"from": rank}) == {"from": 0}
    barrier()
assert rank_and_size() == (0, 1)
"""

ONE_IS_LATE = """
import time, torch
from engine.distributed import *

with process_group("cpu", timeout_s=2) as world:
    if world.rank == 1:
        time.sleep(6)
    mean_over_ranks(torch.ones(1))
"""

ONE_FAILS = """
from engine.distributed import *

with process_group("cpu", timeout_s=30) as world:
    if world.rank == 1:
        raise KeyError("a bug")
    barrier()
"""


def torchrun(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, path], env=env, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.extended
def test_collectives_on_two_processes(tmp_path: Path) -> None:
    done = torchrun(COLLECTIVES, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_timeout_names_the_rank(tmp_path: Path) -> None:
    done = torchrun(ONE_IS_LATE, tmp_path)
    assert done.returncode != 0
    assert "process 0 of 0..1: another process ended or did not answer within 2 s" in done.stderr


@pytest.mark.slow
def test_failure_names_its_rank_and_ends_all_processes(tmp_path: Path) -> None:
    done = torchrun(ONE_FAILS, tmp_path)
    assert done.returncode != 0
    assert "KeyError: 'a bug'\nin process 1 of 0..1" in done.stderr.replace("[rank1]: ", "")


def test_collectives_on_one_process_do_nothing() -> None:
    value, flag = torch.tensor([1.0, 2.0]), torch.tensor(True)
    with process_group("cpu") as world:
        assert world == World(0, 1, torch.device("cpu"))
        assert world.is_main
        assert rank_and_size() == (0, 1)
        assert mean_over_ranks(value) is value
        assert any_over_ranks(flag) is flag
        assert gather_objects("x") == ["x"]
        assert broadcast_object("x") == "x"
        barrier()


def test_mean_compiles_without_a_graph_break() -> None:
    def scaled(value: torch.Tensor) -> torch.Tensor:
        return mean_over_ranks(value) * 2

    compiled = torch.compile(scaled, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(torch.ones(3)), torch.full((3,), 2.0))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta", "cuda:99"])
def test_missing_device_is_rejected(name: str) -> None:
    with pytest.raises(UserError, match=r"^device: ") as caught, process_group(name):
        pass
    assert "\n" not in str(caught.value)


def test_processes_cannot_share_one_named_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="expected cuda with 2 processes"), process_group("cuda:0"):
        pass


def test_default_device_is_the_gpu_if_there_is_one() -> None:
    with process_group() as world:
        assert world.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
