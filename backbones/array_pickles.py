"""Reading of pickled numpy arrays (detectron2's and Caffe2's .pkl), without running their code."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import UserError
from engine.paths import open_file


def read_pickle(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a pickle of numpy arrays: a dict, or a dict under "model" or "blobs".

    Returns the arrays as tensors, and metadata: "__author__" if the file has one.

    Raises:
        UserError: the file is missing, truncated or not such a pickle, or it tries to run code.
    """
    try:
        with open_file(path) as file:
            payload = _ArrayUnpickler(file, path).load()
        blobs = payload.get("model", payload.get("blobs", payload))
        state = {n: v.tensor if isinstance(v, _Array) else v for n, v in blobs.items()}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot read the weights: {error.strerror}") from error
    except Exception as error:  # arbitrary bytes can make the unpickler raise anything
        raise UserError(
            f"{path}: expected a pickle of numpy arrays, got a damaged file or another format"
        ) from error
    author = payload.get("__author__")
    return state, {"__author__": author} if isinstance(author, str) else {}


class _ArrayUnpickler(pickle.Unpickler):
    """Safe unpickler: it creates only arrays, text, numbers and their containers.

    A pickle can call any function that it names, and names are resolved only by `find_class`. Here
    they resolve to the few stand-ins below, so no code chosen by the file ever runs, nor numpy's
    own unpickling, which trusts its input.
    """

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")  # numpy requires it for files from Python 2
        self.path = path

    def find_class(self, module: str, name: str, /) -> Any:
        """Return the stand-in for a name in the pickle."""
        full_name = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # since numpy 2
        if full_name not in _STAND_INS:
            raise UserError(
                f"{self.path}: expected a pickle of numpy arrays, got one that tries to run the "
                f"code {full_name!r}; it was not run"
            )
        return _STAND_INS[full_name]


class _Dtype:
    """Stand-in for numpy.dtype."""

    def __init__(self, code: str, *_flags: object) -> None:
        if code not in ("f2", "f4", "f8", "b1", "i1", "i2", "i4", "i8", "u1"):
            raise pickle.UnpicklingError(f"array of {code}")
        self.code, self.byte_order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.byte_order = state[1]


class _Array:
    """Stand-in for numpy.ndarray; `tensor` is set by `__setstate__`."""

    tensor: Tensor

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, is_fortran, data = state
        self.tensor = _array(data, dtype, shape, "F" if is_fortran else "C").tensor


def _array(data: Any, dtype: _Dtype, shape: Any, order: Any, axes: Any = None) -> _Array:
    """Make an array from bytes: a stand-in for numpy's `_frombuffer` (pickle protocol 5).

    order: "C", "F", or "K" (the memory order, with the axes permuted by `axes`).
    """
    raw = _encode(data) if isinstance(data, str) else data  # Python 2's bytes are read as str
    array = np.frombuffer(raw, dtype.byte_order + dtype.code)
    if order == "K":
        array = array.reshape(shape).transpose(axes)
    else:
        array = array.reshape(shape, order=order)
    result = _Array()
    result.tensor = torch.from_numpy(array.astype(dtype.code))  # a copy, in native byte order
    return result


def _encode(text: str, _encoding: str = "latin1") -> bytes:
    """Stand-in for codecs.encode; with protocol 2, Python 3 pickles bytes as latin1 text."""
    return text.encode("latin1")


_STAND_INS = {
    "_codecs.encode": _encode,
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": _Array,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": lambda dtype, data: _array(data, dtype, (), "C"),
    "numpy.core.numeric._frombuffer": _array,
}
