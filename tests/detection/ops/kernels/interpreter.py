"""Run Triton kernels on the CPU, with Triton's interpreter."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import REPOSITORY

triton = pytest.importorskip("triton")
OLD_INTERPRETER = (
    triton.__version__.startswith("3.6") and np.lib.NumpyVersion(np.__version__) >= "2.4.0"
)
needs_interpreter = pytest.mark.skipif(
    OLD_INTERPRETER, reason="Triton 3.6 interprets no ranges with numpy 2.4"
)


def run_interpreted(module: str, *arguments: str) -> None:
    """Run `python -m module arguments`, in which kernels are interpreted; it must not fail."""
    # its own process: Triton decides when it is imported
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
