"""The Triton kernels of weighted sums of rows: interpreted on the CPU, and compiled for a GPU."""

import re

import pytest
import torch

from tests.detection.ops.kernels.compiled_kernel import CompiledKernel, compile_kernel
from tests.detection.ops.kernels.interpreter import needs_interpreter, run_interpreted
from tools.lab.gpu_check.bags import BACKWARD_SIZES, FORWARD_SIZES

TAPS = 16  # of RoIAlign with two samples along each side of a bin
BYTES = {"bf16": 2, "fp32": 4}
WIDE_READ = re.compile(r"ld\.global\.\S*v4\.b32")
WIDE_COPY = re.compile(r"cp\.async\.cg\S*")  # ptxas accepts only 16 bytes


def test_plan_sorts_the_taps_by_row() -> None:
    from tools.lab.gpu_check.bag_kernels import plan

    # two groups of one bag of three taps; row 1 of four is read by nobody, row 2 by both bags
    idxs = torch.tensor([[[2, 0, 2]], [[3, 2, 0]]], dtype=torch.int32)
    weights = torch.arange(6, dtype=torch.bfloat16).view(2, 1, 3)
    bags, tap_weights, first = plan(idxs, weights, 4)
    assert bags.tolist() == [0, 1, 0, 0, 1, 1]
    assert tap_weights.tolist() == [1, 5, 0, 2, 4, 3]
    assert first.tolist() == [0, 2, 2, 5, 6]
    assert (bags.dtype, tap_weights.dtype, first.dtype) == (
        torch.int32,
        torch.float32,
        torch.int64,
    )


def test_plan_of_no_bags() -> None:
    from tools.lab.gpu_check.bag_kernels import plan

    bags, tap_weights, first = plan(torch.zeros(0, 3, 2).int(), torch.zeros(0, 3, 2), 2)
    assert len(bags) == len(tap_weights) == 0
    assert first.tolist() == [0, 0, 0]


@needs_interpreter
def test_interpreted_they_are_the_reference_in_a_few_cases() -> None:
    run_interpreted("tests.lab.interpreted_bags", "10")


@pytest.mark.extended
@needs_interpreter
def test_interpreted_they_are_the_reference_in_many_cases() -> None:
    run_interpreted("tests.lab.interpreted_bags", "200")


def compile_forward(dtype: str, size: tuple[int, int, int]) -> CompiledKernel:
    from tools.lab.gpu_check.bag_kernels import gather

    bags, columns, warps = size
    pointers = dict.fromkeys(("rows", "weights", "sums"), f"*{dtype}") | {"idxs": "*i32"}
    return compile_kernel(
        gather,
        pointers | {"num_bags": "i32", "num_columns": "i32"},
        constants={"TAPS": TAPS, "BAGS": bags, "COLUMNS": columns},
        options={"num_warps": warps},
        multiples_of_16=[*pointers, "num_columns"],
    )


def compile_backward(dtype: str, size: tuple[int, int, int, int]) -> CompiledKernel:
    from tools.lab.gpu_check.bag_kernels import scatter

    taps, columns, warps, stages = size
    pointers = dict.fromkeys(("grad", "sums"), f"*{dtype}")
    pointers |= {"bags": "*i32", "weights": "*fp32", "first": "*i64"}
    return compile_kernel(
        scatter,
        pointers | {"num_columns": "i32"},
        constants={"TAPS": taps, "COLUMNS": columns, "STAGES": stages},
        options={"num_warps": warps},
        multiples_of_16=[*pointers, "num_columns"],
    )


FORWARDS = [("bf16", size) for size in FORWARD_SIZES] + [("fp32", FORWARD_SIZES[0])]
BACKWARDS = [("bf16", size) for size in BACKWARD_SIZES] + [("fp32", BACKWARD_SIZES[0])]


@pytest.mark.extended
@pytest.mark.parametrize(("dtype", "size"), FORWARDS, ids=str)
def test_forward_reads_16_bytes_and_spills_nothing(dtype: str, size: tuple[int, int, int]) -> None:
    kernel = compile_forward(dtype, size)
    bags, columns, warps = size
    reads = TAPS * bags * columns * BYTES[dtype] // (warps * 32 * 16)
    assert len(WIDE_READ.findall(kernel.ptx)) == reads
    assert kernel.spilled_bytes == 0, kernel.registers


@pytest.mark.extended
@pytest.mark.parametrize(("dtype", "size"), BACKWARDS, ids=str)
def test_backward_reads_16_bytes_and_spills_nothing(
    dtype: str, size: tuple[int, int, int, int]
) -> None:
    kernel = compile_backward(dtype, size)
    taps, columns, warps, stages = size
    reads = taps * columns * BYTES[dtype] // (warps * 32 * 16)
    if stages == 1:
        assert len(WIDE_READ.findall(kernel.ptx)) == reads
    else:  # copies to shared memory: of each block before the loop, and of one within it
        assert len(WIDE_COPY.findall(kernel.ptx)) == stages * reads
    assert "atom" not in kernel.ptx
    assert kernel.spilled_bytes == 0, kernel.registers


def test_the_first_sizes_are_the_defaults() -> None:
    from tools.lab.gpu_check.bag_kernels import BACKWARD_SIZE, FORWARD_SIZE

    assert FORWARD_SIZES[0] == FORWARD_SIZE
    assert BACKWARD_SIZES[0] == BACKWARD_SIZE
