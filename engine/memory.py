"""What the C library does with memory that is freed."""

import ctypes

# of malloc.h: how much free memory at its end the heap keeps, and how many blocks lie outside of it
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory(*, keep: bool = True) -> None:
    """Tell glibc to keep what is freed for the next request, or to do as usual again.

    As usual, each large tensor is a mapping of its own: returned to the system when it is freed,
    and filled page by page, a fault each, when the next one is made. On a CPU that is a tenth of a
    training step (docs/LOG.md). Where the C library is another, nothing happens.

    Args:
        keep: False is what glibc does by itself.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, -1 if keep else 128 * 1024)
        mallopt(_M_MMAP_MAX, 0 if keep else 65536)
