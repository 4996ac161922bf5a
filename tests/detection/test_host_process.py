"""What imports and `load_detector` leave alone in the process that they are called in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detection.commands.tasks import build_task
from detection.predict import load_detector
from engine.checkpoint import write_safetensors
from engine.errors import UserError
from tests.conftest import REPOSITORY
from tests.detection.tasks.tiny import tiny_config

PREDICT = """
import sys
import cv2, numpy, torch

def state():
    return cv2.getNumThreads(), cv2.utils.logging.getLogLevel(), torch.get_num_threads()

cv2.setNumThreads(2)
torch.set_num_threads(2)
before = state()
import detection, engine.memory

def refuse(**_):
    raise AssertionError("the allocator was changed")

engine.memory.keep_freed_memory = refuse
import engine.distributed
engine.distributed.keep_freed_memory = refuse
detector = detection.load_detector(sys.argv[1], device="cpu")
found = detector.predict([sys.argv[2], numpy.zeros((50, 60, 3), numpy.uint8)])
assert len(found) == 2
assert state() == before, (before, state())
"""

ELSEWHERE = """
import ctypes, os, signal, sys
import torch  # which has its own ways on each system

sys.modules["fcntl"] = sys.modules["resource"] = None
for module, names in (
    (os, ("register_at_fork", "O_NONBLOCK", "O_NOFOLLOW", "statvfs")),
    (signal, ("SIGCHLD", "SIGKILL", "pthread_sigmask")),
):
    for name in names:
        delattr(module, name)
load = ctypes.CDLL

class Library(load):
    def __init__(self, name, *args, **kwargs):
        if name is None:
            raise TypeError("there is no such thing on Windows")
        super().__init__(name, *args, **kwargs)

ctypes.CDLL = Library
import engine.trainer, engine.evaluate, detection.commands.train, detection.commands.tasks
from detection.predict import load_detector

found = load_detector(sys.argv[1], device="cpu").predict([sys.argv[2]])
assert len(found) == 1

from pathlib import Path
from engine.locks import FolderLock, exclusive_lock
from engine.memory import keep_freed_memory

folder = Path(sys.argv[1]).parent
lock = FolderLock(folder)
assert "no file locks" in lock.note, lock.note
lock.release(folder)
with exclusive_lock(folder / ".waits"):
    keep_freed_memory()
"""


def run_with_detector(program: str, folder: Path) -> None:
    """Run a program with the paths of a detector's weights and of an image."""
    config = tiny_config(folder / "demo")
    task = build_task(config)
    weights = folder / "model.safetensors"
    write_safetensors(weights, task.model.state_dict(), task.metadata())
    image = next((folder / "demo" / "val").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", program, str(weights), str(image)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.extended
def test_a_library_call_leaves_threads_logs_and_allocator_alone(tmp_path: Path) -> None:
    run_with_detector(PREDICT, tmp_path)


@pytest.mark.extended
def test_imports_and_prediction_need_nothing_of_linux(tmp_path: Path) -> None:
    run_with_detector(ELSEWHERE, tmp_path)


def test_load_detector_refuses_unknown_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESDET_KERNELS", "slow")
    with pytest.raises(UserError, match="RESDET_KERNELS: expected fast or reference, got 'slow'"):
        load_detector(tmp_path)
