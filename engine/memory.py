"""What the C library does with memory that is freed."""

import ctypes

# Of malloc.h: free memory that the heap keeps at its end; least size and number of the blocks that
# are mappings of their own.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_KEEP = {_M_TRIM_THRESHOLD: -1, _M_MMAP_MAX: 0}
# where glibc's own thresholds are once a few large blocks were freed
_USUAL = {_M_TRIM_THRESHOLD: 64 << 20, _M_MMAP_THRESHOLD: 32 << 20, _M_MMAP_MAX: 65536}


def keep_freed_memory(*, keep: bool = True) -> None:
    """Tell glibc to keep what is freed for the next request, or to do as usual again.

    As usual, each tensor of 32 MiB is a mapping of its own: returned to the system when it is
    freed, and filled page by page, a fault each, when the next one is made. On a CPU that is up to
    a sixth of a training step (docs/LOG.md). Where the C library is another, nothing happens.

    Args:
        keep: False is what glibc does by itself; what was kept is given back.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    for parameter, value in (_KEEP if keep else _USUAL).items():
        libc.mallopt(parameter, value)
    if not keep:
        libc.malloc_trim(0)
