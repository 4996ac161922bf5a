"""Settings of torch's backends during a run: determinism, TF32, cuDNN's choice of algorithms."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from engine.errors import UserError
from engine.schema import LoopConfig

_CUBLAS_VARIABLE, _CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"


@contextmanager
def backend_settings(config: LoopConfig, device: torch.device) -> Iterator[None]:
    """Apply the settings of `config` inside the context; restore the earlier ones after it.

    TF32 and cuDNN are set for a GPU only. The variable of cuBLAS stays set: cuBLAS reads it once in
    a process, so a deterministic run must come before other work on the GPU.

    Raises:
        UserError: an operator has no deterministic kernel, but `loop.deterministic` asks for one.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    products = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    convolutions, benchmark = cudnn.allow_tf32, cudnn.benchmark
    if config.deterministic and device.type == "cuda":
        # cuBLAS reads it at its first product, so it has to be set before that
        os.environ.setdefault(_CUBLAS_VARIABLE, _CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(config.deterministic)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
        cudnn.allow_tf32 = config.tf32
        cudnn.benchmark = config.cudnn_benchmark
    try:
        yield
    except RuntimeError as error:
        if not config.deterministic or "deterministic" not in str(error):
            raise
        reason = str(error).split(". ")[0]
        raise UserError(f"loop.deterministic: expected deterministic kernels: {reason}") from error
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_float32_matmul_precision(products)
        cudnn.allow_tf32, cudnn.benchmark = convolutions, benchmark
