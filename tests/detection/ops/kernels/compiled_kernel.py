"""Compile a Triton kernel for an NVIDIA GPU on a machine that has none."""

import contextlib
import io
import re
import tempfile
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import pytest


class CompiledKernel(NamedTuple):
    """What Triton and its assembler ptxas made of a kernel."""

    ptx: str
    registers: int
    """Per thread."""
    spilled_bytes: int
    """Per thread: stored to and loaded from slow local memory, for lack of registers."""


def compile_kernel(
    kernel: Any,
    signature: Mapping[str, str],
    *,
    constants: Mapping[str, int],
    options: Mapping[str, object],
    multiples_of_16: Collection[str] = (),
    capability: int = 90,
) -> CompiledKernel:
    """Compile as a launch does.

    Args:
        kernel: a function with @triton.jit.
        signature: the type of each argument that is not a constant, such as "*bf16" or "i32".
        constants: the arguments declared `tl.constexpr`.
        options: of the launch, such as num_warps.
        multiples_of_16: the arguments whose value or address is one. Triton looks at it in a
            launch, and reads wide where all columns are aligned.
        capability: compute capability; 80 is an A100, 90 an H100.
    """
    import triton

    names = list(kernel.arg_names)
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs=dict(constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in multiples_of_16},
    )
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    log = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as environment,
        contextlib.redirect_stdout(log),
    ):
        environment.setenv("TRITON_CACHE_DIR", folder)  # empty, so that ptxas runs
        environment.setenv("TRITON_DUMP_PTXAS_LOG", "1")
        ptx = triton.compile(source, target=target, options=dict(options)).asm["ptx"]
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", log.getvalue())
    registers = re.findall(r"Used (\d+) registers", log.getvalue())
    assert len(spills) == 2, log.getvalue()
    assert len(registers) == 1, log.getvalue()
    return CompiledKernel(ptx, int(registers[0]), sum(map(int, spills)))
