"""Where a result comes from: the commit of this clone, and the machine with its torch version."""

import platform
import subprocess
from pathlib import Path

import torch

from engine.paths import exists

REPOSITORY = Path(__file__).resolve().parents[1]
"""Root folder of this clone; where the package is installed, a folder that is not a clone."""
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
"""CPU features that make bfloat16 fast, by torch's names for them."""


def current_commit() -> str:
    """Return the full commit hash of this clone; "unknown" if there is none or git cannot tell it.

    `-dirty` is appended if tracked files have uncommitted changes.
    """
    if not exists(REPOSITORY / ".git"):  # git would look in the folders above
        return "unknown"
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
