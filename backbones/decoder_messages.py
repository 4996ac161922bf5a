"""Messages of the C libraries that decode images: libjpeg reports damage in no other way.

They print to C's `stderr`. While an image is decoded, that variable points to a buffer in memory.
The process's file descriptor 2, Python's `sys.stderr` and child processes keep theirs. What other
C libraries print meanwhile, in other threads, is dropped. This needs Linux with glibc; elsewhere
there are no messages.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from engine.memory import c_library

T = TypeVar("T")


class _Capture:
    """C's `stderr`, and a stream in memory in its place while images are decoded."""

    def __init__(self) -> None:
        self._reset()
        self._is_open = False
        self._text, self._size = ctypes.c_void_p(), ctypes.c_size_t()
        self._library: ctypes.CDLL | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._num_decoding = 0
        self._num_alone = 0  # that decode alone, or wait for it
        self._are_mixed = False  # whether messages may be of one image or another

    def _renew(self) -> None:
        """Undo, in a forked child, what other threads of its parent were doing while decoding."""
        self._reset()
        if self._library is not None:
            self._stderr.value = self._usual

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

        Threads decode at the same time. If something is printed meanwhile, they decode again, one
        by one, to learn whose message it is. Without a message it costs some microseconds.
        """
        with self._changed:
            if not self._is_open:
                self._open()
        if self._library is None:
            return decode(*arguments), ""
        result, text, is_own = self._decode(decode, arguments, alone=False)
        if text and not is_own:
            result, text, _ = self._decode(decode, arguments, alone=True)
        return result, text

    def _decode(
        self, decode: Callable[..., T], arguments: Sequence[object], *, alone: bool
    ) -> tuple[T, str, bool]:
        """Return the result, what was printed, and whether that is of this image for certain."""
        with self._changed:
            self._num_alone += alone
        try:
            with self._changed:
                self._changed.wait_for(
                    lambda: not (self._num_decoding if alone else self._num_alone)
                )
                start = self._enter()
            try:
                result = decode(*arguments)
            finally:
                with self._changed:
                    text, is_own = self._printed()[start:], not self._are_mixed
                    self._leave()
        finally:
            with self._changed:
                self._num_alone -= alone
                self._changed.notify_all()
        return result, text.decode(errors="replace"), is_own

    def _enter(self) -> int:
        """Put the stream in place if it is not; return the number of bytes in it."""
        self._are_mixed = self._num_decoding > 0
        self._num_decoding += 1
        self._stderr.value = self._stream
        return len(self._printed())

    def _printed(self) -> bytes:
        """Return what is in the stream."""
        assert self._library is not None
        self._library.fflush(self._stream)  # sets the size
        if not self._size.value:
            return b""
        return ctypes.string_at(self._text, self._size.value)

    def _leave(self) -> None:
        """Empty the stream and put C's own back if no other thread is decoding."""
        self._num_decoding -= 1
        if self._num_decoding == 0:
            assert self._library is not None
            self._stderr.value = self._usual
            self._library.rewind(self._stream)


with_messages = _Capture().with_messages
