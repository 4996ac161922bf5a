from importlib import import_module
from pathlib import Path

import pytest

from engine.errors import UserError
from tools.lab.benchmarks import BENCHMARKS
from tools.lab.benchmarks.settings import Benchmark


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_is_a_function(name: str) -> None:
    module, _, function = BENCHMARKS[name].function.rpartition(".")
    assert callable(getattr(import_module(f"tools.lab.benchmarks.{module}"), function))


def test_what_is_not_there_is_told_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESDET_DATA", str(tmp_path))
    with pytest.raises(UserError, match="RESDET_DATA is to name the folder of real images"):
        BENCHMARKS["padding"].look_for_needs("padding", small=True)
    lacking = Benchmark("x.y", needs=("os", "no_such_package"))
    with pytest.raises(UserError, match="x: expected the package no_such_package, got none"):
        lacking.look_for_needs("x", small=True)
    BENCHMARKS["gpu-trace"].look_for_needs("gpu-trace", small=True)
