"""Catching what the C libraries that decode images print: libjpeg tells of damage in no other way.

They print to C's `stderr`. While an image is decoded that variable points to a buffer in memory.
The process's file descriptor 2, Python's `sys.stderr` and child processes keep theirs.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _Capture:
    """C's `stderr`, and a stream in memory to put in its place; without glibc nothing is caught."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._text, self._size = ctypes.c_void_p(), ctypes.c_size_t()
        self._library: ctypes.CDLL | None = None
        try:
            library = ctypes.CDLL(None)
            _ = library.gnu_get_libc_version  # in other libraries the variable is read-only
            library.open_memstream.restype = ctypes.c_void_p
            for function in (library.fflush, library.rewind):
                function.argtypes = [ctypes.c_void_p]
            self._stderr = ctypes.c_void_p.in_dll(library, "stderr")
        except (AttributeError, OSError, TypeError, ValueError):
            return
        self._usual = self._stderr.value
        pointers = ctypes.byref(self._text), ctypes.byref(self._size)
        self._stream = library.open_memstream(*pointers)
        if self._stream:
            self._library = library
            os.register_at_fork(after_in_child=self._renew)

    def with_messages(self, decode: Callable[..., T], *arguments: object) -> tuple[T, str]:
        """Return what `decode(*arguments)` returns, and what C libraries printed meanwhile, or "".

        One thread at a time. It costs two microseconds.
        """
        library = self._library
        if library is None:
            return decode(*arguments), ""
        with self._lock:
            self._stderr.value = self._stream
            text = ""
            try:
                result = decode(*arguments)
            finally:
                self._stderr.value = self._usual
                library.fflush(self._stream)  # sets the size
                if self._size.value:
                    text = ctypes.string_at(self._text, self._size.value).decode(errors="replace")
                    library.rewind(self._stream)
        return result, text

    def _renew(self) -> None:
        """In a child that was forked while another thread of its parent was decoding."""
        self._lock = threading.Lock()
        self._stderr.value = self._usual


with_messages = _Capture().with_messages
