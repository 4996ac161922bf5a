"""Architecture rules: import directions, file lengths, names, and who prints to the console."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("engine", "backbones", "detection", "tools", "tests")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
}
VAGUE_NAMES = {"util", "utils", "misc", "common", "helper", "helpers"}
# the GPU check reads what it has written itself
MAY_QUERY_PATHS = ("tests/", "engine/paths.py", "tools/lab/gpu_check/")
MAY_PRINT = (
    *("engine/log.py", "detection/commands/", "tools/", "tests/"),
    "detection/export/run_onnx.py",  # a script for users of exported files
)
# Packages that are slow to import, and the modules that may import them at the top. All others
# import them in a function, so that commands start fast.
SLOW_IMPORTS = {
    "albumentations": ("backbones/classification/operations.py", "tools/lab/benchmarks/"),
    "hotcoco": (),
    "matplotlib": (),
    "tensorboard": (),
    "torch.utils.tensorboard": (),
    "torchvision": (
        "backbones/classification/cifar.py",
        "tools/lab/benchmarks/",
        "detection/datasets/download.py",
    ),
}
# engine/precision.py asks whether the processor has bfloat16; the benchmarks count operations
MAY_USE_ONEDNN = (
    "backbones/kernels/",
    "engine/precision.py",
    "tools/lab/benchmarks/steps.py",
    "tests/",
)
MAY_IMPORT_TORCHVISION_OPS = ("detection/ops/", "tools/lab/benchmarks/", "tests/")


def imported_modules(source: str, *, top_level: bool = False) -> Iterator[str]:
    """Yield dotted names: `from a import b` gives a.b, whether b is a module or not.

    With `top_level`, only of statements outside functions and conditions.
    """
    tree = ast.parse(source)
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def called_names(source: str) -> Iterator[str]:
    """Yield the last part of each called name: `console.print(...)` gives `print`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id


def test_import_contracts_hold() -> None:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--no-cache"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_torchvision_ops_stay_in_detection_ops() -> None:
    # import-linter treats an external package as a whole, so it cannot check a submodule
    violations = [
        name
        for name, source in SOURCES.items()
        if not name.startswith(MAY_IMPORT_TORCHVISION_OPS)
        and any(module.startswith("torchvision.ops") for module in imported_modules(source))
    ]
    assert violations == []


def test_onednns_private_operators_stay_in_backbones_kernels() -> None:
    strays = [name for name, source in SOURCES.items() if "torch.ops.mkldnn" in source]
    assert [name for name in strays if not name.startswith(MAY_USE_ONEDNN)] == []


@pytest.mark.parametrize("package", SLOW_IMPORTS)
def test_slow_packages_are_imported_where_they_are_used(package: str) -> None:
    violations = [
        name
        for name, source in SOURCES.items()
        if not name.startswith(("tests/", *SLOW_IMPORTS[package]))
        and any(
            f"{module}.".startswith(f"{package}.")
            for module in imported_modules(source, top_level=True)
        )
    ]
    assert violations == []


def test_files_are_short() -> None:
    lengths = {name: len(source.splitlines()) for name, source in SOURCES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_scripts_contain_no_logic() -> None:
    scripts = {name: source for name, source in SOURCES.items() if name.count("/") == 1}
    lengths = {
        name: len(source.splitlines())
        for name, source in scripts.items()
        if name.startswith("tools/")
    }
    assert lengths
    assert {name: length for name, length in lengths.items() if length > 20} == {}


def test_only_engine_paths_queries_the_file_system() -> None:
    # Path's own methods raise for long names, NUL and missing permissions: users see a traceback
    queries = {"exists", "is_file", "is_dir", "glob", "rglob", "iterdir", "read_text", "read_bytes"}
    violations = [
        (name, node.func.attr)
        for name, source in SOURCES.items()
        if not name.startswith(MAY_QUERY_PATHS)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in queries
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("paths", "entry"))
    ]
    assert violations == []


def test_no_module_has_a_vague_name() -> None:
    parts_of = {name: set(name.removesuffix(".py").split("/")) for name in SOURCES}
    assert [name for name, parts in parts_of.items() if parts & VAGUE_NAMES] == []


def test_only_the_log_and_commands_print() -> None:
    printing = [name for name, source in SOURCES.items() if "print" in called_names(source)]
    assert [name for name in printing if not name.startswith(MAY_PRINT)] == []
