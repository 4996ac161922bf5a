"""The installed `resdet` in an environment of its own, outside the repository: every command runs.

The environment takes 6 GB and minutes, because the wheel's dependencies are installed, too.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SHORT = ("loop.max_steps=4", "loop.eval_every=0", "data.demo.num_train=12", "data.demo.num_val=6")
SHORT_PRETRAINING = (
    *("loop.max_steps=2", "loop.batch_size=8"),
    *("data.demo.num_train=80", "data.demo.num_val=80"),
)


class Site:
    """A folder of a user, and an environment with `resdet`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "user"
        self.folder.mkdir()
        self._bin = folder / "venv" / "bin"
        # an environment variable must not lead Python to the repository, nor change what runs
        dropped = ("PYTHON", "RESDET", "VIRTUAL_ENV")
        rest = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        self._environment = {**rest, "PATH": f"{self._bin}:{os.environ['PATH']}"}
        subprocess.run([sys.executable, "-m", "venv", self._bin.parent], check=True)

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run a program of the environment in the folder; return its output."""
        done = subprocess.run(
            [self._bin / program, *arguments],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The environment, with a demo detector that was trained for four steps in `runs/demo`."""
    made = Site(tmp_path_factory.mktemp("site"))
    made.run("pip", "install", "--quiet", f"{wheel}[export]")
    made.run("resdet", "train", "demo", *SHORT)
    return made


def test_pretrain(site: Site) -> None:
    out = site.run("resdet", "pretrain", "demo_objects", *SHORT_PRETRAINING)
    assert "next: resdet eval runs/demo_objects" in out


def test_eval(site: Site) -> None:
    site.run("resdet", "eval", "runs/demo", "--output", "scored")
    assert (site.folder / "scored" / "metrics.json").is_file()


def test_predict(site: Site) -> None:
    site.run("resdet", "predict", "runs/demo", "data/demo/val", "--output", "found")
    assert (site.folder / "found" / "detections.json").is_file()


def test_report(site: Site) -> None:
    site.run("resdet", "report", "runs/demo")
    page = (site.folder / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    assert "<style>" in page


def test_export(site: Site) -> None:
    site.run("resdet", "export", "runs/demo", "--format", "onnx")
    assert (site.folder / "runs" / "demo" / "model.onnx").is_file()


def test_two_processes(site: Site) -> None:
    arguments = ("train", "segmentation/demo", *SHORT, "--output", "runs/masks")
    launch = ("--standalone", "--nproc-per-node", "2", "--no-python")
    assert "2 process(es)" in site.run("torchrun", *launch, "resdet", *arguments)
