"""Messages of the C libraries that decode images: libjpeg reports damage in no other way.

They print to C's `stderr`. While an image is decoded, that variable points to a buffer in memory.
The process's file descriptor 2, Python's `sys.stderr` and child processes keep theirs. This needs
Linux with glibc; elsewhere there are no messages.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from engine.memory import c_library

T = TypeVar("T")


class _Capture:
    """C's `stderr`, and a stream in memory to put in its place; made at the first image."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_open = False
        self._text, self._size = ctypes.c_void_p(), ctypes.c_size_t()
        self._library: ctypes.CDLL | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _open(self) -> None:
        """Find C's `stderr` and make the stream; where that is impossible there is no library."""
        self._is_open = True
        library = c_library()
        if library is None:
            return
        try:
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

    def with_messages(self, decode: Callable[..., T], *arguments: object) -> tuple[T, str]:
        """Return what `decode(*arguments)` returns, and what C libraries printed meanwhile, or "".

        One thread at a time. It costs two microseconds.
        """
        with self._lock:
            if not self._is_open:
                self._open()
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
        """Undo, in a forked child, what another thread of its parent was doing while decoding."""
        self._lock = threading.Lock()
        if self._library is not None:
            self._stderr.value = self._usual


with_messages = _Capture().with_messages
