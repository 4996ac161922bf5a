"""Settings of torch's backends in a run: what they are, and that they are restored."""

import os

import pytest
import torch

from engine.backend_settings import backend_settings
from engine.errors import UserError
from engine.schema import LoopConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")  # no GPU is needed to set anything


def settings() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        cudnn.allow_tf32,
        cudnn.benchmark,
    )


@pytest.mark.parametrize(
    ("loop", "expected"),
    [
        pytest.param({}, (False, "high", True, False), id="as usual"),
        pytest.param({"tf32": False}, (False, "highest", False, False), id="full float32"),
        pytest.param({"cudnn_benchmark": True}, (False, "high", True, True), id="benchmark"),
        pytest.param({"deterministic": True}, (True, "high", True, False), id="deterministic"),
    ],
)
def test_they_hold_inside_and_are_restored(
    loop: dict[str, bool], expected: tuple[object, ...]
) -> None:
    before = settings()
    with backend_settings(LoopConfig(**loop), CUDA):
        assert settings() == expected
    assert settings() == before
    with backend_settings(LoopConfig(**loop), CPU):  # on a CPU TF32 and cuDNN stay as they are
        assert settings() == (expected[0], *before[1:])


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_deterministic_products_have_a_workspace(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.setenv(name, given or "")  # restores it after the test
    if given is None:
        del os.environ[name]
    with backend_settings(LoopConfig(), CUDA):
        assert os.environ.get(name) == given
    with backend_settings(LoopConfig(deterministic=True), CUDA):
        assert os.environ[name] == (given or ":4096:8")


def test_an_operator_without_a_deterministic_kernel_is_named() -> None:
    with (
        pytest.raises(UserError, match="put_ does not have a determ"),
        backend_settings(LoopConfig(deterministic=True), CPU),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_pass() -> None:
    with (
        pytest.raises(RuntimeError, match="must match"),
        backend_settings(LoopConfig(deterministic=True), CPU),
    ):
        torch.zeros(3) + torch.zeros(2)
