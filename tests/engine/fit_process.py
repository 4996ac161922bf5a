"""Run by test_fit_processes.py: `fit` on the toy task in two processes, as torchrun starts them.

They are forked once all is imported, which takes most of the time.
"""

import os
import socket
import sys
from importlib import import_module
from pathlib import Path

import torch

from engine.schema import LoaderConfig, LoopConfig, OptimConfig, RunConfig
from engine.trainer import fit
from tests.engine.toy import ToyTask


def run_config() -> RunConfig:
    """Return the config: eight rows a step over all processes, in two parts on each."""
    return RunConfig(
        optim=OptimConfig(lr=0.05, clip_grad_norm=0.5),
        loader=LoaderConfig(workers=0),
        loop=LoopConfig(
            max_steps=6, batch_size=8, accumulate=2, ema_decay=0.9, collective_timeout_s=60
        ),
    )


def train(folder: Path) -> None:
    """Train in the run folder `folder`/run, and leave this process's weights beside it."""
    task = ToyTask()
    fit(task, run_config(), output=folder / "run", device="cpu")
    weights = {name: value.detach() for name, value in task.model.named_parameters()}
    torch.save(weights, folder / f"{os.environ['RANK']}.pt")


def main(folder: str, size: int = 2) -> int:
    """Fork `size` processes that train together; return how many of them failed."""
    torch.set_num_threads(1)
    for late in ("torch.distributed.nn", "torch._dynamo"):  # what each would import by itself
        import_module(late)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            train(Path(folder))
            return 0
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
