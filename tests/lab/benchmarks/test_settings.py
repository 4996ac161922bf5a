from importlib import import_module
from pathlib import Path

import pytest

from engine.errors import UserError
from tools.lab.benchmarks import BENCHMARKS
from tools.lab.benchmarks.settings import Benchmark


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_names_a_function(name: str) -> None:
    module, _, function = BENCHMARKS[name].function.rpartition(".")
    assert callable(getattr(import_module(f"tools.lab.benchmarks.{module}"), function))


def test_missing_requirements_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESDET_DATA", str(tmp_path))
    with pytest.raises(UserError, match="set RESDET_DATA to the folder that holds coco128"):
        BENCHMARKS["padding"].check_requirements("padding", small=True)
    incomplete = Benchmark("x.y", requires=("os", "no_such_package"))
    with pytest.raises(UserError, match="x: expected the package no_such_package to be installed"):
        incomplete.check_requirements("x", small=True)
    BENCHMARKS["gpu-trace"].check_requirements("gpu-trace", small=True)
