"""Fixtures of all tests: fixed seeds, one thread per process, the folder of real images."""

import os
import random
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
DATA_REQUIRED = os.environ.get("RESDET_REQUIRE_DATA") == "1"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores, so more threads would only wait


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark users of `data_dir` as `data`, and skip `gpu` tests without a CUDA device."""
    no_gpu = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(no_gpu)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With RESDET_REQUIRE_DATA=1, report a skipped `data` test as failed."""
    report = yield
    xfailed = hasattr(report, "wasxfail")
    forbidden = DATA_REQUIRED and item.get_closest_marker("data") is not None
    if forbidden and report.skipped and not xfailed:
        reason = call.excinfo.value if call.excinfo else "skipped"
        report.outcome = "failed"
        report.longrepr = f"RESDET_REQUIRE_DATA=1 forbids skipping a data test: {reason}"
    return report


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with coco128/, bccd/, ...: RESDET_DATA, or `shared/data` beside the repository."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("RESDET_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no folder of real images at {folder} (set RESDET_DATA)")
    return folder


@pytest.fixture(scope="session")
def cifar_root(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with cifar-10-batches-py/ as torchvision reads it, unpacked once per session."""
    unpack = data_dir / "cifar10" / "unpack.py"
    if not unpack.is_file():
        pytest.skip(f"no CIFAR-10 at {unpack.parent}")
    root = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(unpack), str(root)], check=True, capture_output=True)
    return root


@pytest.fixture(autouse=True, scope="session")
def _quiet_opencv() -> None:
    """Do as commands do before they fork processes that read images."""
    from backbones.images import quiet_opencv

    quiet_opencv()


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=["fast", "reference"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with each kind of kernels; see engine.kernels."""
    monkeypatch.setenv("RESDET_KERNELS", request.param)
    return str(request.param)


@pytest.fixture
def fast_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of a fast kernel alone, in a run with RESDET_KERNELS=reference."""
    monkeypatch.setenv("RESDET_KERNELS", "fast")
