"""Run one stage of the GPU check: python -m tools.lab.gpu_check STAGE."""

import sys
import time
from collections.abc import Callable
from functools import partial

from tools.lab.gpu_check import bags, card, inference, steps, trainings
from tools.lab.gpu_check.record import SCRATCH, save

STAGES: dict[str, Callable[[], None]] = {
    "env": card.environment,
    "smoke": card.smoke,
    "infer": inference.time_inference,
    "peer": steps.time_peer,
    "classify": steps.time_classifier,
    "bags": bags.time_bags,
    "loader": trainings.time_loader,
    "bccd": trainings.train_blood_cells,
    "cifar": trainings.train_cifar,
    **{f"step_{name}": partial(steps.time_steps, name) for name in ("fpn", "c4", "mask")},
    **{f"compile_{name}": partial(steps.time_compiled, name) for name in ("fpn", "c4")},
    **{f"train_{name}": partial(trainings.train_on_jpegs, name) for name in ("fpn", "c4")},
    **{f"demo_{name}": partial(trainings.train_demo, name) for name in ("bf16", "fp32")},
}


def main(name: str) -> None:
    """Run a stage; record its duration, or the error if it fails."""
    start = time.time()
    SCRATCH.mkdir(parents=True, exist_ok=True)  # stages keep weights, runs and locks in it
    try:
        STAGES[name]()
    except BaseException as error:
        seconds = round(time.time() - start, 1)
        save(name, FAILED=f"{type(error).__name__}: {str(error)[:400]}", after_s=seconds)
        raise
    save("seconds", **{name: round(time.time() - start, 1)})


if __name__ == "__main__":
    main(sys.argv[1])
