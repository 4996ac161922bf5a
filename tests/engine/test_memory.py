"""glibc keeps freed memory, and returns it again."""

import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
import torch
from engine.memory import keep_freed_memory
for argument in sys.argv[1:]:
    keep_freed_memory(keep=argument == "keep")
for _ in range(20):  # small blocks settle between the large ones
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> int:
    """Return the page faults of making and dropping 64 MiB twenty times."""
    command = [sys.executable, "-c", COUNT_FAULTS, *arguments]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_is_freed_is_used_again() -> None:
    usual, kept, undone = faults(), faults("keep"), faults("keep", "as usual")
    assert kept * 10 < min(usual, undone)
