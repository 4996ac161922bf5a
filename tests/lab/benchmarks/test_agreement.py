"""Results of the two sides are compared on whichever devices they are, seen without a GPU.

Tensors without values have a CUDA device: a mix of devices is an error there, as on a GPU, and so
is a question for a value. A check that asks for one has therefore passed all mixes before it.
"""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from detection.structures import Detections
from tests.fake_device import with_cuda_types
from tools.lab.benchmarks.agreement import check_objects
from tools.lab.benchmarks.errors import DisagreementError
from tools.lab.benchmarks.measure import check_close


def objects(count: int, *, device: str) -> dict[str, Tensor]:
    """Return detections of one image as torchvision does; all have the same box."""
    return {
        "boxes": torch.ones(count, 4, device=device),
        "scores": torch.ones(count, device=device),
        "labels": torch.ones(count, dtype=torch.int64, device=device),
    }


def ours(count: int) -> Detections:
    found = objects(count, device="cpu")
    return Detections(found["boxes"], found["scores"], found["labels"] - 1)


@with_cuda_types
def test_detections_of_a_cpu_are_compared_with_those_of_a_gpu() -> None:
    with FakeTensorMode():
        check_objects(ours(0), objects(0, device="cuda"))  # to its end: there is no value to read
        with pytest.raises(DataDependentOutputException):
            check_objects(ours(3), objects(3, device="cuda"))


@with_cuda_types
@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")], ids=str)
def test_results_on_any_devices_are_compared(devices: tuple[str, str]) -> None:
    with FakeTensorMode():
        found, expected = (torch.ones(3, device=device) for device in devices)
        with pytest.raises(DataDependentOutputException):
            check_close("scores", found, expected, rtol=0, atol=0)


def test_different_objects_are_an_error() -> None:
    check_objects(ours(2), objects(2, device="cpu"))
    with pytest.raises(DisagreementError, match="expected 3, got 2"):
        check_objects(ours(2), objects(3, device="cpu"))
    for name in ("boxes", "scores", "labels"):
        peer = objects(2, device="cpu")
        peer[name][1] += 1
        with pytest.raises(DisagreementError, match="scores" if name == "scores" else "boxes"):
            check_objects(ours(2), peer)
