"""How many mutants of some modules the tests notice: `python -m tests.mutation.run OUTPUT`.

No file is changed: each mutant is put in its module's place in a forked process, which then runs
the tests of that module. What others' packages take to import is paid once. Tests that start
processes of their own do not see the mutant, and are not run here.
"""

import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tests.mutation.mutants import Mutant, sample

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 240
WORKERS = 2
PACKAGES = ("torch", "torch._dynamo", "torchvision", "cv2", "pycocotools.mask", "pydantic", "rich")
TESTS = {
    "engine/step.py": "engine/test_written_out.py engine/test_trainer.py engine/test_step.py",
    "engine/optim.py": "engine/test_optim.py engine/test_written_out.py",
    "detection/losses.py": "detection/test_losses.py detection/tasks/test_golden.py",
    "detection/samples.py": "detection/tasks/test_later_stages.py detection/tasks/test_golden.py "
    "detection/test_samples.py",
    "detection/models/box_head.py": "detection/models/test_box_head.py "
    "detection/tasks/test_later_stages.py detection/tasks/test_mask_aligned.py",
    "detection/models/proposals.py": "detection/models/test_proposals.py",
    "detection/data/coco.py": "detection/data/test_coco.py detection/data/test_coco_values.py "
    "detection/data/test_ledger.py fuzz/test_properties_coco.py",
}


class _Loader(importlib.abc.Loader):
    def __init__(self, tree: ast.Module, path: Path) -> None:
        self.tree, self.path = tree, path

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.tree, str(self.path), "exec"), module.__dict__)


class _Finder(importlib.abc.MetaPathFinder):
    """Loads one module from a changed tree."""

    def __init__(self, name: str, tree: ast.Module, path: Path) -> None:
        self.name, self.loader, self.path = name, _Loader(tree, path), path

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self.loader)


def start(file: str, tree: ast.Module) -> int:
    """Fork a process that runs a module's tests on a mutant; it ends with 0 if all pass."""
    child = os.fork()
    if child:
        return child
    os.setpgrp()
    signal.alarm(TIMEOUT_S)  # ends the process
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        name = file.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, _Finder(name, tree, REPOSITORY / file))
        tests = [f"tests/{each}" for each in TESTS[file].split()]
        there = [path for path in tests if (REPOSITORY / path).exists()]
        code = 1
        with contextlib.suppress(BaseException):
            code = int(pytest.main([*there, "-x", "-q", "-p", "no:cacheprovider"]))
        os._exit(code)


def run(output: Path, files: Sequence[str], *, count: int, seed: int) -> None:
    """Try `count` mutants of each file, and append one line for each to `output`."""
    for package in PACKAGES:
        import_module(package)
    queue: list[tuple[str, Mutant]] = []
    for file in files:
        source = (REPOSITORY / file).read_text()
        untouched = Mutant(0, "untouched", ast.parse(source))
        queue += [(file, each) for each in [untouched, *sample(source, count=count, seed=seed)]]
    running: dict[int, tuple[str, Mutant, float]] = {}
    while queue or running:
        while queue and len(running) < WORKERS:
            file, mutant = queue.pop(0)
            running[start(file, mutant.tree)] = file, mutant, time.monotonic()
        child, status = os.wait()
        file, mutant, began = running.pop(child)
        survived = os.waitstatus_to_exitcode(status) == 0
        told = f"{'SURVIVED' if survived else 'killed'} {file}:{mutant.line} {mutant.told}"
        with output.open("a") as log:
            log.write(f"{told} ({time.monotonic() - began:.0f} s)\n")


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[3:] or list(TESTS), count=int(sys.argv[2]), seed=0)
