"""How many mutants of some modules the tests notice: `python -m tests.mutation.run OUTPUT COUNT`.

No file is changed. The tests of a module are imported once; for each mutant the process forks,
gives the module's functions the mutant's code, and runs the tests until one fails. Tests that start
processes of their own do not see the mutant.
"""

import ast
import inspect
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from tests.mutation.mutants import Mutant, sample

REPOSITORY = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300
WORKERS = 2
TESTS = {
    "engine/step.py": "engine/test_written_out.py engine/test_step.py engine/test_trainer.py "
    "detection/tasks/test_segmentation.py",
    "engine/optim.py": "engine/test_optim.py engine/test_written_out.py",
    "detection/losses.py": "detection/test_losses.py detection/test_mean_count.py "
    "detection/tasks/test_loss_weights.py",
    "detection/samples.py": "detection/tasks/test_later_stages.py detection/tasks/test_golden.py "
    "detection/tasks/test_segmentation.py",
    "detection/models/box_head.py": "detection/models/test_box_head.py "
    "detection/tasks/test_later_stages.py detection/tasks/test_mask_aligned.py",
    "detection/models/proposals.py": "detection/models/test_proposals.py "
    "detection/models/test_proposal_sides.py",
    "detection/data/coco.py": "detection/data/test_coco.py detection/data/test_coco_values.py "
    "detection/data/test_data_report.py detection/data/test_masks.py fuzz/test_properties_coco.py",
}


def put_in_place(file: str, tree: ast.Module) -> None:
    """Give the functions and constants of a module, wherever they were imported, a mutant's code.

    Args:
        file: of the module, relative to the repository.
        tree: the mutant.
    """
    module = import_module(file.removesuffix(".py").replace("/", "."))
    changed = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(tree, file, "exec"), changed)
    _give(vars(module), changed, module)


def _give(own: Any, changed: Any, owner: Any) -> None:
    for name, new in list(changed.items()):
        old = own.get(name)
        if isinstance(new, bool | int | float | tuple) and name in own:
            setattr(owner, name, new)
        if inspect.isclass(new) and inspect.isclass(old) and new.__module__ == old.__module__:
            if new is old:
                continue
            _give(vars(old), vars(new), old)
            if "__dataclass_fields__" in vars(old):  # the defaults are in what was generated
                old.__init__ = new.__init__  # type: ignore[method-assign]
        for function, code in zip(_functions(old), _functions(new), strict=False):
            if function is not code and code.__module__ == function.__module__:
                if len(code.__code__.co_freevars) == len(function.__code__.co_freevars):
                    function.__code__ = code.__code__
                function.__defaults__ = code.__defaults__
                function.__kwdefaults__ = code.__kwdefaults__


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield the functions that a name stands for, under its decorators."""
    value = getattr(value, "fget", None) or getattr(value, "__func__", value)
    while isinstance(value, FunctionType):
        wrapped = getattr(value, "__wrapped__", None)
        if wrapped is None:
            yield value
        value = wrapped


@dataclass
class Trial:
    """A pytest plugin that runs the tests on each mutant of a file, and appends lines to a log."""

    log: Path
    mutants: Sequence[tuple[str, Mutant]]
    running: dict[int, tuple[str, Mutant, float]] = field(default_factory=dict)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Fork for each mutant; the tests run there alone."""
        for file, mutant in self.mutants:
            if len(self.running) == WORKERS:
                self._wait()
            child = os.fork()
            if child == 0:
                self._run(session, file, mutant)
            self.running[child] = file, mutant, time.monotonic()
        while self.running:
            self._wait()
        return True

    def _run(self, session: pytest.Session, file: str, mutant: Mutant) -> None:
        from _pytest.main import pytest_runtestloop

        failed = True
        try:
            signal.alarm(TIMEOUT_S)  # ends the process
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            put_in_place(file, mutant.tree)
            pytest_runtestloop(session)
            failed = session.testsfailed > 0
        finally:
            os._exit(int(failed))

    def _wait(self) -> None:
        child, status = os.wait()
        file, mutant, began = self.running.pop(child)
        code = os.waitstatus_to_exitcode(status)
        ends = {0: "SURVIVED", 1: "killed", -signal.SIGALRM: "too slow"}
        end = ends.get(code, f"ended by {code}")
        with self.log.open("a") as log:
            seconds = time.monotonic() - began
            log.write(f"{end} {file}:{mutant.line} {mutant.told} ({seconds:.0f} s)\n")


def run(log: Path, files: Sequence[str], *, count: int, seed: int) -> None:
    """Try `count` mutants of each file, and each file as it is, which has to survive."""
    for file in files:
        child = os.fork()  # so that no module is imported before pytest does it
        if child == 0:
            source = (REPOSITORY / file).read_text()
            untouched = Mutant(0, "as it is", ast.parse(source))
            mutants = [untouched, *sample(source, count=count, seed=seed)]
            tests = [f"tests/{each}" for each in TESTS[file].split()]
            trial = Trial(log, [(file, mutant) for mutant in mutants])
            chosen = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
            os._exit(int(pytest.main([*tests, *chosen], [trial])))
        os.waitpid(child, 0)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[3:] or list(TESTS), count=int(sys.argv[2]), seed=0)
