"""Where a result comes from: the commit of this clone, and the machine with its torch version."""

import json
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from engine.files import write_file
from engine.paths import exists, is_file, read_text

REPOSITORY = Path(__file__).resolve().parents[1]
"""Root folder of this clone; where the package is installed, a folder that is not a clone."""
STARTS_FILE = "environment.json"
"""File of a run folder that says where the run was started and resumed."""
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""CPU features that make bfloat16 fast, by torch's names for them."""


def current_commit() -> str:
    """Return the full commit hash of this clone, or `version X` of the installed package.

    `-dirty` is appended if tracked files have uncommitted changes. "unknown" if git cannot tell the
    commit, or this is neither a clone nor installed.
    """
    if not exists(REPOSITORY / ".git"):  # git would look in the folders above
        found = {each.version for each in distributions(name="resdet", path=[str(REPOSITORY)])}
        return f"version {found.pop()}" if found else "unknown"
    # --exclude=* ignores tags, so that the result is always a hash
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def describe_machine(device: torch.device) -> str:
    """Return one line: the GPU, or the CPU with its threads, and the version of torch."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        # The vector instructions decide how fast a CPU is, in bfloat16 above all.
        capability = torch.backends.cpu.get_cpu_capability()
        threads = torch.get_num_threads()
        known = torch.cpu.get_capabilities()
        instructions = [capability, *(each for each in BF16_INSTRUCTIONS if known.get(each))]
        processor = known.get("cpu_name", platform.machine())
        name = f"{processor} CPU with {', '.join(instructions)}, {threads} threads"
    return f"{name}, torch {torch.__version__}"


def note_start(folder: Path, *, step: int, device: torch.device) -> None:
    """Add the commit, machine and Python of a start to the run's `STARTS_FILE`.

    Args:
        folder: the run folder.
        step: 0, or the step that the run is resumed at; later starts in the file are dropped, as
            later lines of its log are.
        device: where it trains.
    """
    start = {
        "step": step,
        "commit": current_commit(),
        "machine": describe_machine(device),
        "python": platform.python_version(),
    }
    starts = [each for each in read_starts(folder) if each["step"] < step]
    write_file(folder / STARTS_FILE, json.dumps([*starts, start], indent=1) + "\n")


def read_starts(folder: Path) -> list[dict[str, Any]]:
    """Return the starts that `note_start` has noted, [] if there are none or the file is damaged.

    Each has `step`, `commit`, `machine` and `python`.
    """
    if not is_file(folder / STARTS_FILE):
        return []
    try:
        starts = json.loads(read_text(folder / STARTS_FILE))
    except ValueError:
        return []
    keys = ("step", "commit", "machine", "python")
    if not isinstance(starts, list):
        return []
    return [
        each
        for each in starts
        if isinstance(each, dict) and all(key in each for key in keys) and type(each["step"]) is int
    ]
