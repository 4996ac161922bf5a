"""The Triton kernel of NMS: interpreted on the CPU, compiled for a GPU, and run on one."""

import subprocess
import types

import pytest
import torch

from detection.ops.nms import find_kernel, nms_keep
from engine.kernels import warn_of_fallback
from tests.detection.ops.crowded_boxes import CASES, Batch, crowded
from tests.detection.ops.kernels.compiled_kernel import CompiledKernel, compile_kernel
from tests.detection.ops.kernels.interpreter import needs_interpreter, run_interpreted

triton = pytest.importorskip("triton")


@pytest.mark.extended
@needs_interpreter
def test_interpreted_it_is_torchvisions_in_many_cases() -> None:
    run_interpreted("tests.detection.ops.kernels.interpreted_nms", "200")


def compiled(capability: int, **options: int) -> CompiledKernel:
    from detection.ops.kernels.nms_triton import OPTIONS, suppress

    pointers = {"rows": "*fp32", "kept": "*fp32", "marks": "*u8"}
    return compile_kernel(
        suppress,
        pointers | {"num_boxes": "i32", "max_kept": "i32", "iou_thresh": "fp32"},
        constants={"BLOCK": 64},
        options=OPTIONS | options,
        multiples_of_16=pointers,
        capability=capability,
    )


@pytest.mark.extended
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_for_a_gpu_to_the_cpus_arithmetic_without_spills(capability: int) -> None:
    kernel = compiled(capability)
    assert "div.rn.f32" in kernel.ptx
    assert "div.full" not in kernel.ptx
    assert "fma.rn" not in kernel.ptx
    assert kernel.spilled_bytes == 0, kernel.registers


@pytest.mark.extended
def test_with_few_registers_it_would_spill() -> None:
    kernel = compiled(90, maxnreg=64)
    assert kernel.registers == 64
    assert kernel.spilled_bytes > 0


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
