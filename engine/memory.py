"""Allocation settings of the C library: what it does with freed memory. Linux with glibc only."""

import ctypes

# Constants of malloc.h: free memory that the heap keeps at its end; minimum size and
# maximum number of the blocks that are mapped separately.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_KEEP = {_M_TRIM_THRESHOLD: -1, _M_MMAP_MAX: 0}
# where glibc's own thresholds are after a few large blocks were freed
_USUAL = {_M_TRIM_THRESHOLD: 64 << 20, _M_MMAP_THRESHOLD: 32 << 20, _M_MMAP_MAX: 65536}


def c_library() -> ctypes.CDLL | None:
    """Return the C library of this process; None on Windows, where it cannot be loaded this way."""
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):
        return None


def keep_freed_memory(*, keep: bool = True) -> None:
    """Tell glibc to keep freed memory for the next request, or restore its default.

    By default each tensor of 32 MiB or more is a mapping of its own: it returns to the system when
    it is freed, and the next one costs a page fault for each of its pages. On a CPU that is up to a
    sixth of a training step (docs/LOG.md). With another C library nothing happens.

    Args:
        keep: False restores glibc's default and returns what was kept to the system.
    """
    libc = c_library()
    if libc is None or not hasattr(libc, "mallopt"):
        return
    for parameter, value in (_KEEP if keep else _USUAL).items():
        libc.mallopt(parameter, value)
    if not keep:
        libc.malloc_trim(0)
