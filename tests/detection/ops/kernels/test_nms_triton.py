"""The Triton kernel of NMS: interpreted on the CPU, compiled for a GPU, and run on one."""

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from detection.ops.nms import find_kernel, nms_keep
from engine.kernels import warn_of_fallback
from tests.conftest import REPOSITORY
from tests.detection.ops.crowded_boxes import CASES, Batch, crowded

triton = pytest.importorskip("triton")
OLD_INTERPRETER = (
    triton.__version__.startswith("3.6") and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
)


@pytest.mark.extended
@pytest.mark.skipif(OLD_INTERPRETER, reason="Triton 3.6 interprets no ranges with numpy 2.4")
def test_interpreted_it_is_the_plain_version() -> None:
    # its own process: Triton decides when it is imported
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TRITON_INTERPRET": "1"}
    script = REPOSITORY / "tests/detection/ops/kernels/interpreted_kernel.py"
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.extended
def test_it_compiles_for_a_gpu_to_the_cpus_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detection.ops.kernels.nms_triton import OPTIONS, suppress

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {"rows": "*fp32", "kept": "*fp32", "marks": "*u8"}
    numbers = {"num_boxes": "i32", "max_kept": "i32", "iou_thresh": "fp32", "BLOCK": "constexpr"}
    source = triton.compiler.ASTSource(
        fn=suppress, signature=pointers | numbers, constexprs={"BLOCK": 64}
    )
    target = triton.backends.compiler.GPUTarget("cuda", 80, 32)
    assembly = triton.compile(source, target=target, options=OPTIONS).asm["ptx"]
    assert "div.rn.f32" in assembly
    assert "div.full" not in assembly
    assert "fma.rn" not in assembly


def clear_caches() -> None:
    find_kernel.cache_clear()
    warn_of_fallback.cache_clear()


def test_it_warns_where_triton_cannot_compile() -> None:
    clear_caches()
    with pytest.warns(
        UserWarning, match="NMS: the reference kernel runs, and the host waits for cpu"
    ):
        assert find_kernel(torch.device("cpu")) is None


def fail_to_launch(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def launch(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(triton.JITFunction, "run", launch)
    clear_caches()


FAILURES = {
    "no driver": AssertionError("libcuda.so cannot found!"),
    "compiler": triton.CompilationError("", types.SimpleNamespace(lineno=1, col_offset=0), "no"),
    "small device": triton.OutOfResources(2, 1, "shared memory"),
    "C compiler": subprocess.CalledProcessError(1, "cc"),
}


@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
def test_any_error_of_triton_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_to_launch(monkeypatch, error)
    with pytest.warns(UserWarning, match=f"no Triton kernel.*{type(error).__name__}"):
        assert find_kernel(torch.device("cpu")) is None


def test_a_full_device_is_not_blamed_on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_launch(monkeypatch, torch.OutOfMemoryError())
    with pytest.raises(torch.OutOfMemoryError):
        find_kernel(torch.device("cpu"))


@pytest.mark.gpu
def test_it_is_found_on_a_gpu() -> None:
    assert find_kernel(torch.device("cuda")) is not None


@pytest.mark.gpu
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_on_a_gpu_it_is_the_plain_version(case: tuple[Batch, float, int | None]) -> None:
    batch, iou_thresh, max_kept = case
    found = nms_keep(*(part.cuda() for part in batch), iou_thresh=iou_thresh, max_kept=max_kept)
    expected = nms_keep(*batch, iou_thresh=iou_thresh, max_kept=max_kept)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.gpu
def test_many_proposals_on_a_gpu() -> None:
    corners = torch.rand(4, 12000, 2) * 1000
    boxes = torch.cat([corners, corners + 30 + torch.rand(4, 12000, 2) * 200], dim=-1)
    batch = (boxes, torch.rand(4, 12000), torch.randint(0, 5, (4, 12000)), torch.rand(4, 12000) < 1)
    found = nms_keep(*(part.cuda() for part in batch), iou_thresh=0.7, max_kept=2000)
    assert torch.equal(found.cpu(), nms_keep(*batch, iou_thresh=0.7, max_kept=2000))


@pytest.mark.gpu
@pytest.mark.usefixtures("fast_kernels")  # torchvision's suppression waits
def test_a_captured_graph_replays_without_a_wait() -> None:
    first, second = (crowded(700, num_groups=number) for number in (3, 4))
    inputs = tuple(part.cuda() for part in first)
    nms_keep(*inputs, iou_thresh=0.5, max_kept=100)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        nms_keep(*inputs, iou_thresh=0.5, max_kept=100)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        keep = nms_keep(*inputs, iou_thresh=0.5, max_kept=100)
    for batch in (second, first):
        for static, part in zip(inputs, batch, strict=True):
            static.copy_(part)
        graph.replay()
        assert torch.equal(keep.cpu(), nms_keep(*batch, iou_thresh=0.5, max_kept=100))
